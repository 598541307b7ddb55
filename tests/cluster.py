"A study on a cluster of this machine, or on joblib's own processes. `cluster.py BACKEND PATH RUNS EPOCHS`"
import sys
import warnings
from contextlib import ExitStack

warnings.filterwarnings('ignore')
warnings.filterwarnings('default', 'a worker was killed')
from joblib import parallel_config  # noqa: E402

from early_prune.compare import make_runs, train_runs  # noqa: E402


def start_ray(attempts=5):
    "On a busy machine its node is not up within the 30 seconds that Ray waits for it."
    import ray
    for i in range(attempts):
        try: return ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        except Exception as e: # Ray raises nothing narrower
            if 'timed out during startup' not in str(e) or i==attempts-1: raise
            ray.shutdown()

if __name__=='__main__':
    backend,path,n,epochs = sys.argv[1:]
    with ExitStack() as stack:
        if backend=='ray':
            start_ray()
        if backend=='dask':
            from dask.distributed import Client, LocalCluster
            stack.enter_context(Client(stack.enter_context(LocalCluster(2, threads_per_worker=1, dashboard_address=None))))
        stack.enter_context(parallel_config(backend=backend))
        found = train_runs(make_runs('one_cycle', .8, int(n), arch='small_cnn', epochs=int(epochs), limit=256), path, 2)
    print(len(found.records))
