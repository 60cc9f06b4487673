"""Sacrificial processes that perform events for real."""
