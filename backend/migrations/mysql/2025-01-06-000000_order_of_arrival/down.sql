DELETE FROM leases WHERE name = 'arrivals';
