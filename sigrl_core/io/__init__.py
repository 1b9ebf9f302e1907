"""Accesses files on disks and in object stores, and runs resumable jobs."""
