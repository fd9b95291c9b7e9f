-- Rows become files on the stage: a column `prompt`, a column `completion`, one Parquet file.
USE ROLE firn_owner;
USE WAREHOUSE firn_wh;
USE SCHEMA firn.app;

-- Your own table stands here. This one has the columns of the tutorial's.
CREATE TABLE IF NOT EXISTS offers (
  organization_name VARCHAR,
  product_name VARCHAR,
  product_category VARCHAR,
  product_description VARCHAR,
  reward VARCHAR,
  reward_type VARCHAR,
  qualification VARCHAR,
  hyperlink VARCHAR,
  description VARCHAR
);

-- The prompt holds the whole row, as the same query builds it when the model is asked. Names in double quotes keep
-- their case in the file, and their names say what they are for.
CREATE OR REPLACE VIEW offers_prompts AS
SELECT
  'Describe this offer.\n' || TO_JSON(OBJECT_CONSTRUCT(
    'ORGANIZATION_NAME', organization_name, 'PRODUCT_NAME', product_name, 'PRODUCT_CATEGORY', product_category,
    'PRODUCT_DESCRIPTION', product_description, 'REWARD', reward, 'REWARD_TYPE', reward_type,
    'QUALIFICATION', qualification, 'HYPERLINK', hyperlink)) AS "prompt",
  description AS "completion"
FROM offers
WHERE description IS NOT NULL;

-- One file of at most 256 MB, which is what data-prep takes unless FIRN_MAX_SOURCE_BYTES says more.
COPY INTO @stage/inputs/offers/train.parquet
FROM (SELECT "prompt", "completion" FROM offers_prompts)
FILE_FORMAT = (TYPE = PARQUET COMPRESSION = SNAPPY)
HEADER = TRUE
SINGLE = TRUE
OVERWRITE = TRUE
MAX_FILE_SIZE = 268435456;

LIST @stage/inputs/offers/;
