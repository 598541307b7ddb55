"Entry of the command line: `python -m early_prune`, and the script `early_prune`."
import sys
import warnings

warnings.filterwarnings('ignore', message='.*torch.jit.script.*') # a note of fastai's, not for our readers
try: from early_prune.cli import main
except KeyboardInterrupt: sys.exit(130) # Ctrl-C while the libraries are loaded, before anything was begun

if __name__=='__main__': sys.exit(main())
