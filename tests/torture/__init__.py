"""The standing test: real programs check their data while they are welded and welders killed."""
