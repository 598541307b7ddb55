"Entry of the command line: `python -m early_prune`, and the script `early_prune`."
import sys
import warnings

warnings.filterwarnings('ignore', message='.*torch.jit.script.*') # a note of fastai's, not for our readers
from early_prune.cli import main  # noqa: E402

if __name__=='__main__': sys.exit(main())
