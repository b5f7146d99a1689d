"""Derivatives that torch lacks, or gives slowly."""
