-- Takes everything away again, models and rows on the stage included.
USE ROLE firn_owner;
USE SCHEMA firn.app;
ALTER TASK IF EXISTS suspend_in_the_evening SUSPEND;
DROP SERVICE IF EXISTS firn;
DROP SERVICE IF EXISTS firn_inference;
DROP SERVICE IF EXISTS firn_train;
DROP SERVICE IF EXISTS firn_init;

USE ROLE ACCOUNTADMIN;
ALTER COMPUTE POOL IF EXISTS firn_pool STOP ALL;
ALTER COMPUTE POOL IF EXISTS firn_small_pool STOP ALL;
DROP COMPUTE POOL IF EXISTS firn_pool;
DROP COMPUTE POOL IF EXISTS firn_small_pool;
DROP DATABASE IF EXISTS firn;
DROP WAREHOUSE IF EXISTS firn_wh;
REVOKE BIND SERVICE ENDPOINT ON ACCOUNT FROM ROLE firn_owner;
DROP ROLE IF EXISTS firn_user;
DROP ROLE IF EXISTS firn_owner;

-- Nothing of these is left that costs:
SHOW COMPUTE POOLS LIKE 'firn%';
