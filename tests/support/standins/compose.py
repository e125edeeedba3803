"""Compose verl's shipped configuration with overrides, in an interpreter that has hydra-core. compose.py FOLDER
OVERRIDES.json -> JSON.
"""

import json
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir  # type: ignore[import-not-found]
from omegaconf import OmegaConf  # type: ignore[import-not-found]

with initialize_config_dir(config_dir=sys.argv[1], version_base=None):
    config = compose(config_name="ppo_trainer", overrides=json.loads(Path(sys.argv[2]).read_text()))
print(json.dumps(OmegaConf.to_container(config, resolve=False)))
