"""Ledgers in, text out.  Nothing here computes memory; a number that is shown is a ledger's or a sum of a ledger's."""
