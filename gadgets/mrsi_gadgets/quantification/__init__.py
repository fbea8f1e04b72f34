"""From FIDs to amounts: linear-combination fits and their uncertainty (eq. 19 to 22)."""
