-- The cheap way: train by a job that ends, serve by a service of its own, one GPU each, and let no pool run overnight.
USE ROLE firn_owner;
USE WAREHOUSE firn_wh;
USE SCHEMA firn.app;

-- Suspend the service first if it runs: two registries must not write one stage.
ALTER SERVICE IF EXISTS firn SUSPEND;

-- Ends when the model is registered. The base is bases/firn/tiny unless job.yaml was rendered with another.
EXECUTE JOB SERVICE
  IN COMPUTE POOL firn_small_pool
  NAME = firn_train
  ASYNC = TRUE
  FROM @specs
  SPECIFICATION_TEMPLATE_FILE = 'job.yaml'
  USING (firn_image => '"/firn/app/images/firn-cuda:0.1.0"');
-- DONE, or FAILED with the reason in the log's last line. Maintenance may end a job: run it again then, and it goes on
-- with what was unfinished before it begins anew.
CALL firn_train!SPCS_WAIT_FOR('DONE', 3600);
SELECT SYSTEM$GET_SERVICE_LOGS('firn_train', 0, 'train', 50);
DROP SERVICE IF EXISTS firn_train;

-- Serving alone. One more instance starts at 80 % of the requested CPU or memory.
CREATE SERVICE IF NOT EXISTS firn_inference
  IN COMPUTE POOL firn_small_pool
  FROM @specs
  SPECIFICATION_TEMPLATE_FILE = 'inference.yaml'
  USING (
    gateway_image => '"/firn/app/images/firn-gateway:0.1.0"',
    model_registry_image => '"/firn/app/images/firn-model-registry:0.1.0"',
    inference_image => '"/firn/app/images/firn-inference-cuda:0.1.0"'
  )
  MIN_INSTANCES = 1
  MAX_INSTANCES = 4;
GRANT SERVICE ROLE firn_inference!chat TO ROLE firn_user;
SHOW ENDPOINTS IN SERVICE firn_inference;
-- Its registry follows the stage: what another job registers is served some seconds later.

-- A pool with a running service never suspends by itself: this ends both each evening.
CREATE OR REPLACE PROCEDURE suspend_all()
  RETURNS VARCHAR
  LANGUAGE SQL
  EXECUTE AS OWNER
AS
$$
BEGIN
  ALTER SERVICE IF EXISTS firn.app.firn SUSPEND;
  ALTER SERVICE IF EXISTS firn.app.firn_inference SUSPEND;
  -- Running jobs may end first.
  ALTER COMPUTE POOL firn_pool SUSPEND;
  ALTER COMPUTE POOL firn_small_pool SUSPEND;
  RETURN 'suspended';
END;
$$;
USE ROLE ACCOUNTADMIN;
GRANT EXECUTE TASK ON ACCOUNT TO ROLE firn_owner;
USE ROLE firn_owner;
CREATE TASK IF NOT EXISTS suspend_in_the_evening
  WAREHOUSE = firn_wh
  SCHEDULE = 'USING CRON 0 20 * * * UTC'
AS
  CALL firn.app.suspend_all();
ALTER TASK suspend_in_the_evening RESUME;
