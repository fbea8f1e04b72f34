"""Removal of water and lipid signals from FIDs and from (k,t) data."""
