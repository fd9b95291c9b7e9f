-- Roles, a database with its stages, an image repository and two compute pools. Run it once, as ACCOUNTADMIN.
-- Nothing here opens the network: services reach no host outside the account.
USE ROLE ACCOUNTADMIN;

-- Owns everything and runs the services. ACCOUNTADMIN itself may not own a service.
CREATE ROLE IF NOT EXISTS firn_owner;
-- May chat and call the functions, and sees nothing else.
CREATE ROLE IF NOT EXISTS firn_user;
GRANT ROLE firn_owner TO ROLE SYSADMIN;
GRANT ROLE firn_user TO ROLE firn_owner;
-- The one right on the account that is needed: a public endpoint, which only users of the account reach.
GRANT BIND SERVICE ENDPOINT ON ACCOUNT TO ROLE firn_owner;

CREATE WAREHOUSE IF NOT EXISTS firn_wh
  WAREHOUSE_SIZE = XSMALL
  AUTO_SUSPEND = 60
  AUTO_RESUME = TRUE
  INITIALLY_SUSPENDED = TRUE;
GRANT USAGE, OPERATE ON WAREHOUSE firn_wh TO ROLE firn_owner;
GRANT USAGE ON WAREHOUSE firn_wh TO ROLE firn_user;

CREATE DATABASE IF NOT EXISTS firn;
GRANT OWNERSHIP ON DATABASE firn TO ROLE firn_owner COPY CURRENT GRANTS;
GRANT OWNERSHIP ON SCHEMA firn.public TO ROLE firn_owner COPY CURRENT GRANTS;

-- The service needs two GPUs in one node: the trainer and inference have one each. A job, or inference alone, needs one.
-- Pools are billed while they idle, so that both suspend soon after their last service or job.
CREATE COMPUTE POOL IF NOT EXISTS firn_pool
  MIN_NODES = 1
  MAX_NODES = 1
  INSTANCE_FAMILY = GPU_NV_M
  AUTO_RESUME = TRUE
  INITIALLY_SUSPENDED = TRUE
  AUTO_SUSPEND_SECS = 300;
CREATE COMPUTE POOL IF NOT EXISTS firn_small_pool
  MIN_NODES = 1
  MAX_NODES = 4
  INSTANCE_FAMILY = GPU_NV_S
  AUTO_RESUME = TRUE
  INITIALLY_SUSPENDED = TRUE
  AUTO_SUSPEND_SECS = 300;
GRANT USAGE, MONITOR, OPERATE ON COMPUTE POOL firn_pool TO ROLE firn_owner;
GRANT USAGE, MONITOR, OPERATE ON COMPUTE POOL firn_small_pool TO ROLE firn_owner;

USE ROLE firn_owner;
CREATE SCHEMA IF NOT EXISTS firn.app;
USE SCHEMA firn.app;

-- Mounted by the services. Its encryption cannot be changed later, and only this kind is safe to mount.
CREATE STAGE IF NOT EXISTS stage
  DIRECTORY = (ENABLE = TRUE)
  ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE');
-- Specifications, which nobody mounts.
CREATE STAGE IF NOT EXISTS specs
  ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE');
CREATE IMAGE REPOSITORY IF NOT EXISTS images;

GRANT USAGE ON DATABASE firn TO ROLE firn_user;
GRANT USAGE ON SCHEMA firn.app TO ROLE firn_user;

-- Where to push the images:
SHOW IMAGE REPOSITORIES IN SCHEMA firn.app;
