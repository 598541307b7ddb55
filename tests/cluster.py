"A study on a cluster of this machine, or on joblib's own processes. `cluster.py BACKEND PATH RUNS EPOCHS`"
import sys
import warnings
from contextlib import ExitStack

warnings.filterwarnings('ignore')
from joblib import parallel_config  # noqa: E402

from early_prune.compare import make_runs, train_runs  # noqa: E402

if __name__=='__main__':
    backend,path,n,epochs = sys.argv[1:]
    with ExitStack() as stack:
        if backend=='ray':
            import ray
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        if backend=='dask':
            from dask.distributed import Client, LocalCluster
            stack.enter_context(Client(stack.enter_context(LocalCluster(2, threads_per_worker=1, dashboard_address=None))))
        stack.enter_context(parallel_config(backend=backend))
        found = train_runs(make_runs('one_cycle', .8, int(n), arch='small_cnn', epochs=int(epochs), limit=256), path, 2)
    print(len(found.records))
