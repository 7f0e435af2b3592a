#!/bin/sh
# A key pair per SuperNode, by which the SuperLink knows it: ECDSA on P-384, the kind that Flower takes.
#
#   node_keys.sh FOLDER SITE...
#
# FOLDER (mode 0700) gets SITE (private, mode 0600: it stays at the site) and SITE.pub (for `flwr supernode register`).
# Best run at each site for itself. No private key is ever overwritten: what is there is kept.
set -eu
umask 077

if [ $# -lt 2 ]; then
    echo "usage: $0 FOLDER SITE..." >&2
    exit 2
fi
folder=$1
shift
for site in "$@"; do
    case $site in
        *[!A-Za-z0-9._-]* | "" | -* | .* | *.pub)
            echo "SITE is '$site', but must be of letters, digits, '.', '_' and '-', begin with none of the marks and not end in .pub" >&2
            exit 2
            ;;
    esac
done

mkdir -p "$folder"
chmod 700 "$folder"
for site in "$@"; do
    key=$folder/$site
    if [ -e "$key" ]; then
        chmod 600 "$key"
        if [ -e "$key.pub" ]; then
            echo "kept  $key, $key.pub"
        else
            ssh-keygen -y -f "$key" > "$key.pub"
            echo "kept  $key; made  $key.pub"
        fi
    else
        ssh-keygen -q -t ecdsa -b 384 -N "" -C "$site" -f "$key"
        echo "made  $key (private, mode 0600: stays at the site), $key.pub (public: to be registered)"
    fi
    chmod 644 "$key.pub"
done
