"Packaging: every value comes from settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(HERE/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

STATUS = {1:'1 - Planning', 2:'2 - Pre-Alpha', 3:'3 - Alpha', 4:'4 - Beta', 5:'5 - Production/Stable'}

def extra(key): return cfg[f'{key}_requirements'].split()

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    long_description=(HERE/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    classifiers=[f'Development Status :: {STATUS[int(cfg["status"])]}', f'Intended Audience :: {cfg["audience"]}',
                 f'Natural Language :: {cfg["language"]}', 'Programming Language :: Python :: 3',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    packages=find_packages(include=['early_prune', 'early_prune.*']), include_package_data=True,
    python_requires=f'>={cfg["min_python"]}', install_requires=cfg['requirements'].split(),
    extras_require={'dev':extra('dev'), 'peers':extra('peers'), 'cluster':extra('cluster'), 'loops':extra('loops'),
                    'ship':extra('ship')},
    entry_points={'console_scripts':cfg['console_scripts'].split(), 'nbdev':['early_prune=early_prune._modidx:d']},
    zip_safe=False)
