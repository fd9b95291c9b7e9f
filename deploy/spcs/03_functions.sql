-- Answers and fine-tuning from SQL. The gateway knows its callers by CURRENT_USER: it refuses a function without it.
USE ROLE firn_owner;
USE WAREHOUSE firn_wh;
USE SCHEMA firn.app;

-- One answer a row. `model` is an alias such as offers@latest, or base.
CREATE OR REPLACE FUNCTION complete(model VARCHAR, prompt VARCHAR)
  RETURNS VARCHAR
  SERVICE = firn
  ENDPOINT = api
  CONTEXT_HEADERS = (CURRENT_USER)
  MAX_BATCH_ROWS = 32
  AS '/functions/complete';

-- These only put work into the queue or look at it: a call that takes more than 30 seconds would be made again.
CREATE OR REPLACE FUNCTION finetune_create(name VARCHAR, base VARCHAR, source VARCHAR)
  RETURNS VARCHAR
  SERVICE = firn
  ENDPOINT = api
  CONTEXT_HEADERS = (CURRENT_USER)
  MAX_BATCH_ROWS = 1
  AS '/functions/finetune/create';
CREATE OR REPLACE FUNCTION finetune_status(job VARCHAR)
  RETURNS VARIANT
  SERVICE = firn
  ENDPOINT = api
  CONTEXT_HEADERS = (CURRENT_USER)
  MAX_BATCH_ROWS = 1
  AS '/functions/finetune/status';
CREATE OR REPLACE FUNCTION finetune_cancel(job VARCHAR)
  RETURNS VARIANT
  SERVICE = firn
  ENDPOINT = api
  CONTEXT_HEADERS = (CURRENT_USER)
  MAX_BATCH_ROWS = 1
  AS '/functions/finetune/cancel';
CREATE OR REPLACE FUNCTION finetune_list()
  RETURNS VARIANT
  SERVICE = firn
  ENDPOINT = api
  CONTEXT_HEADERS = (CURRENT_USER)
  MAX_BATCH_ROWS = 1
  AS '/functions/finetune/list';

-- FINETUNE in the shape of Cortex's:
--   CALL finetune('CREATE', 'offers', 'bases/firn/tiny', 'SELECT "prompt", "completion" FROM offers_prompts');
--   CALL finetune('DESCRIBE', '<job>');  CALL finetune('CANCEL', '<job>');  CALL finetune('SHOW');
-- It runs with the rights of its caller, so that nobody reads a table through it that is not theirs to read.
CREATE OR REPLACE PROCEDURE finetune(
    action VARCHAR, subject VARCHAR DEFAULT '', base VARCHAR DEFAULT '', query VARCHAR DEFAULT '')
  RETURNS VARIANT
  LANGUAGE SQL
  EXECUTE AS CALLER
AS
$$
DECLARE
  folder VARCHAR;
  result VARIANT;
  unknown_action EXCEPTION (-20001, 'FINETUNE knows CREATE, DESCRIBE, CANCEL and SHOW');
  no_name EXCEPTION (-20002, 'a model is named by lower-case letters, digits and hyphens, and begins with a letter');
BEGIN
  CASE (UPPER(action))
    WHEN 'CREATE' THEN
      -- The name becomes a part of a path and of a statement.
      IF (NOT REGEXP_LIKE(subject, '[a-z][a-z0-9-]{0,62}')) THEN
        RAISE no_name;
      END IF;
      -- A path of its own each time: what a job reads does not change under it.
      folder := 'inputs/' || subject || '/' || TO_CHAR(SYSDATE(), 'YYYYMMDDHH24MISSFF3');
      EXECUTE IMMEDIATE 'COPY INTO @firn.app.stage/' || folder || '/train.parquet FROM (' || query || ') '
        || 'FILE_FORMAT = (TYPE = PARQUET) HEADER = TRUE SINGLE = TRUE MAX_FILE_SIZE = 268435456';
      SELECT TO_VARIANT(firn.app.finetune_create(:subject, :base, '/stage/' || :folder || '/train.parquet'))
        INTO :result;
    WHEN 'DESCRIBE' THEN
      SELECT firn.app.finetune_status(:subject) INTO :result;
    WHEN 'CANCEL' THEN
      SELECT firn.app.finetune_cancel(:subject) INTO :result;
    WHEN 'SHOW' THEN
      SELECT firn.app.finetune_list() INTO :result;
    ELSE
      RAISE unknown_action;
  END CASE;
  RETURN result;
END;
$$;

GRANT USAGE ON FUNCTION complete(VARCHAR, VARCHAR) TO ROLE firn_user;

-- The tuned model on rows that it has not seen:
SELECT complete('offers@latest', "prompt") AS answer, "completion" AS expected FROM offers_prompts LIMIT 5;
