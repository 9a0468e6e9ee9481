"""The recurrent cells of CRRN; each module holds one cell of the same name."""
