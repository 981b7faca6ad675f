"""The compatibility table of docs/methods.md, written from what the methods
declare."""
