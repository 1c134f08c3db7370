DROP TABLE past_searches;
DROP TABLE proposals;
DROP TABLE unknown_pictures;
DROP TABLE named_unknowns;
