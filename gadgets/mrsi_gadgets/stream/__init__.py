"""The MRD streaming protocol: messages, wire format, session rules, connections, client. It knows nothing of MRSI."""
