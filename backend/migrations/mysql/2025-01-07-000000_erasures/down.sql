DROP TABLE erasures;
DELETE FROM leases WHERE name = 'retain';
