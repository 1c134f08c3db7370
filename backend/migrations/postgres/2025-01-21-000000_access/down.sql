DROP TABLE access_state;
DROP TABLE access_tokens;
DROP TABLE principals;
