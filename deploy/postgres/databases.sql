-- A database for each service, which the others cannot enter. Run once, when PostgreSQL makes its files.
\getenv gateway GATEWAY_DATABASE_PASSWORD
\getenv nlp NLP_DATABASE_PASSWORD
\getenv reply REPLY_DATABASE_PASSWORD

CREATE ROLE gateway LOGIN PASSWORD :'gateway';
CREATE ROLE nlp LOGIN PASSWORD :'nlp';
CREATE ROLE reply LOGIN PASSWORD :'reply';

CREATE DATABASE gateway OWNER gateway;
CREATE DATABASE nlp OWNER nlp;
CREATE DATABASE reply OWNER reply;

REVOKE CONNECT ON DATABASE gateway, nlp, reply FROM PUBLIC;
