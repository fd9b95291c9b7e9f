-- Only if a base is to be fetched from the model hub instead of being PUT on the stage: the one hole in the wall.
-- Full host names, no wildcards; the hub answers from others too, which its redirects name. Run it as ACCOUNTADMIN.
USE ROLE ACCOUNTADMIN;
USE SCHEMA firn.app;
CREATE NETWORK RULE IF NOT EXISTS model_hub
  MODE = EGRESS
  TYPE = HOST_PORT
  VALUE_LIST = ('huggingface.co:443', 'cdn-lfs.huggingface.co:443', 'cas-bridge.xethub.hf.co:443');
CREATE EXTERNAL ACCESS INTEGRATION IF NOT EXISTS firn_model_hub
  ALLOWED_NETWORK_RULES = (firn.app.model_hub)
  ENABLED = TRUE;
GRANT USAGE ON INTEGRATION firn_model_hub TO ROLE firn_owner;
-- A token is a secret and no variable in the specification: firn spcs render … --secret trainer:HF_TOKEN=firn.app.hub_token
-- CREATE SECRET firn.app.hub_token TYPE = GENERIC_STRING SECRET_STRING = '…';
-- GRANT READ ON SECRET firn.app.hub_token TO ROLE firn_owner;
-- ALTER SERVICE firn.app.firn SET EXTERNAL_ACCESS_INTEGRATIONS = (firn_model_hub);
