-- The five services in one instance, and what to look at when they do not come up. The specifications and images must
-- be there already: PUT and docker push, as README.md shows.
USE ROLE firn_owner;
USE WAREHOUSE firn_wh;
USE SCHEMA firn.app;

-- Puts the bundled base on the stage and ends. A base of your own needs no job: PUT its files to @stage/bases/org/name/,
-- and render the specification with --base bases/org/name.
EXECUTE JOB SERVICE
  IN COMPUTE POOL firn_small_pool
  NAME = firn_init
  FROM SPECIFICATION $$
spec:
  containers:
  - name: init
    image: /firn/app/images/firn-cuda:0.1.0
    args: [init, --stage, /stage]
    volumeMounts:
    - {name: stage, mountPath: /stage}
    resources:
      requests: {cpu: 0.5, memory: 0.5Gi}
      limits: {cpu: 1, memory: 1Gi}
  volumes:
  - name: stage
    source: stage
    uid: 10001
    gid: 10001
    stageConfig: {name: "@firn.app.stage"}
$$;
LIST @stage/bases/firn/tiny/;

-- A value with `/` or `:` is JSON, with double quotes of its own. What is left out has the template's default.
CREATE SERVICE IF NOT EXISTS firn
  IN COMPUTE POOL firn_pool
  FROM @specs
  SPECIFICATION_TEMPLATE_FILE = 'service.yaml'
  USING (
    gateway_image => '"/firn/app/images/firn-gateway:0.1.0"',
    data_prep_image => '"/firn/app/images/firn-data-prep:0.1.0"',
    model_registry_image => '"/firn/app/images/firn-model-registry:0.1.0"',
    trainer_image => '"/firn/app/images/firn-trainer-cuda:0.1.0"',
    inference_image => '"/firn/app/images/firn-inference-cuda:0.1.0"'
  )
  -- A second instance would be a second trainer and a second writer of the stage.
  MIN_INSTANCES = 1
  MAX_INSTANCES = 1
  QUERY_WAREHOUSE = firn_wh;
ALTER SERVICE firn SET LOG_LEVEL = 'INFO';

GRANT SERVICE ROLE firn!chat TO ROLE firn_user;

-- Five containers that are READY within some minutes; a message names what one waits for.
SHOW SERVICE CONTAINERS IN SERVICE firn;
-- The page, once ingress_url is there. Its users need firn_user, as a default role that is not ACCOUNTADMIN.
SHOW ENDPOINTS IN SERVICE firn;
SELECT SYSTEM$GET_SERVICE_LOGS('firn', 0, 'inference', 50);
-- Of a container that was restarted:
SELECT SYSTEM$GET_SERVICE_LOGS('firn', 0, 'trainer', 50, TRUE);

-- A new image: its tag is read again here, and nowhere else. One instance means a break of some minutes; a job goes on
-- from its last checkpoint.
-- ALTER SERVICE firn FROM @specs SPECIFICATION_TEMPLATE_FILE = 'service.yaml' USING (gateway_image => '"…:0.1.1"');
