-- The width of a predicted bound before it was calibrated by how bounds had held: ln(upper / expected).
ALTER TABLE prediction ADD COLUMN width REAL;
