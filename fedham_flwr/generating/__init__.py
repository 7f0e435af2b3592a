"""The hypernetwork that generates tensors of clients, and the clients' embeddings: for FedTP and pFedHN."""
