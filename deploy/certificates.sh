#!/bin/sh
# Certificates of a federation: an authority of its own, and the SuperLink's certificate, signed by it.
#
#   certificates.sh FOLDER NAME...
#
# FOLDER gets ca.key and ca.crt, superlink.key and superlink.crt; it is made with mode 0700, the keys with 0600. The
# NAMEs are the host names and IP addresses by which the SuperNodes and the operator reach the SuperLink; localhost,
# 127.0.0.1 and ::1 are added, since the SuperLink's own processes call it there.
#
# No private key is ever overwritten. Called again, it keeps what is there, and signs a new certificate for the same
# key if the names differ or less than 30 days are left. DAYS (825) and CA_DAYS (3650) say how long they are good for.
set -eu
umask 077

if [ $# -lt 2 ]; then
    echo "usage: $0 FOLDER NAME..." >&2
    exit 2
fi
folder=$1
shift
days=${DAYS:-825}
ca_days=${CA_DAYS:-3650}

names="DNS:localhost,IP:127.0.0.1,IP:::1"
for name in "$@"; do
    case $name in
        localhost | 127.0.0.1 | ::1) ;;
        *[!A-Za-z0-9.:*-]* | "" | -*)
            echo "NAME is '$name', but must be a host name or an IP address" >&2
            exit 2
            ;;
        *:*) names="$names,IP:$name" ;;
        *[!0-9.]*) names="$names,DNS:$name" ;;
        *) names="$names,IP:$name" ;;
    esac
done

mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"
work=$(mktemp -d ./.making.XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Good: signed by this authority for this key, with these names, for another 30 days.
good() {
    [ -e ca.crt ] && [ -e superlink.key ] && [ -e superlink.crt ] && [ "$(cat superlink.names 2> /dev/null)" = "$names" ] &&
        openssl x509 -in superlink.crt -noout -checkend 2592000 > /dev/null &&
        openssl verify -CAfile ca.crt superlink.crt > /dev/null 2>&1 &&
        [ "$(openssl x509 -in superlink.crt -noout -pubkey)" = "$(openssl pkey -in superlink.key -pubout)" ]
}

if good; then
    for file in ca.crt superlink.key superlink.crt; do echo "kept  $folder/$file"; done
    exit 0
fi

new_key() { # written whole or not at all
    openssl ecparam -name secp384r1 -genkey -noout -out "$work/key"
    chmod 600 "$work/key"
    mv -n "$work/key" "$1"
    echo "made  $folder/$1 (private, mode 0600)"
}

if [ -e ca.key ]; then
    echo "kept  $folder/ca.key"
elif [ -e superlink.crt ] && [ -e superlink.key ] && [ -e ca.crt ] && [ "${NEW_CA:-}" != 1 ]; then
    # The authority's key has been moved to a safe place: there is nothing to sign with, nor to replace.
    echo "$folder/ca.key is not here: bring it back to sign a certificate, or set NEW_CA=1 to begin a new authority" >&2
    exit 1
else
    new_key ca.key
    rm -f ca.crt
fi

if [ ! -e ca.crt ]; then
    cat > "$work/ca.cnf" <<CNF
[req]
distinguished_name = name
x509_extensions = ca
prompt = no
[name]
CN = Authority of the federation
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
CNF
    openssl req -x509 -new -sha384 -key ca.key -days "$ca_days" -config "$work/ca.cnf" -out "$work/ca.crt"
    chmod 644 "$work/ca.crt"
    mv "$work/ca.crt" ca.crt
    echo "made  $folder/ca.crt (public: every SuperNode and operator gets it)"
else
    echo "kept  $folder/ca.crt"
fi

if [ -e superlink.key ]; then
    echo "kept  $folder/superlink.key"
else
    new_key superlink.key
fi

cat > "$work/superlink.cnf" <<CNF
[req]
distinguished_name = name
prompt = no
[name]
CN = SuperLink
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = $names
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
CNF
openssl req -new -sha384 -key superlink.key -config "$work/superlink.cnf" -out "$work/request"
openssl x509 -req -sha384 -in "$work/request" -CA ca.crt -CAkey ca.key -days "$days" \
    -set_serial "0x$(openssl rand -hex 16)" -extfile "$work/superlink.cnf" -extensions server \
    -out "$work/superlink.crt" 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
chmod 644 "$work/superlink.crt"
mv "$work/superlink.crt" superlink.crt
printf '%s' "$names" > superlink.names
echo "made  $folder/superlink.crt ($names), good for $days days"
