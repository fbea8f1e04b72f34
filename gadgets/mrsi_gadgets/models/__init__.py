"""Learned signal models: what is known of FIDs before a scan (eq. 6)."""
