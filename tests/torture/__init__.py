"""The standing test of welding: real programs that check their own data, welded without pause while welders are killed."""
