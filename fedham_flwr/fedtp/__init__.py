"""FedTP's generator of self-attention, and the clients' embeddings."""
