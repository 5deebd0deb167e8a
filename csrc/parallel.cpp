#include "parallel.h"

#include <atomic>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#else
#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#endif
#ifndef _WIN32
#include <pthread.h>
#endif

namespace pliant {
namespace {

// Neither OpenMP's threads nor our own survive a fork, so a child process uses a single one.
std::atomic<bool> forked{false};

void watch_forks() {
#ifndef _WIN32
    static const int watching = pthread_atfork(nullptr, nullptr, [] { forked = true; });
    (void)watching;
#endif
}

// Tasks that are still to be done, on a cache line of their own.
struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
};

#ifndef _OPENMP
// Threads that wait for work. They are never joined: the process may end while they wait.
class Pool {
  public:
    // Calls work(worker) in the calling thread and, as far as threads are free before that returns, in others.
    template <class Work>
    void run(int threads, const Work& work) {
        Job job{[](const void* context, int worker) { (*static_cast<const Work*>(context))(worker); }, &work, threads};
        std::unique_lock<std::mutex> lock(mutex_);
        grow(threads - 1);
        jobs_.push_back(&job);
        lock.unlock();
        wake_.notify_all();
        work(0);
        lock.lock();
        jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
        done_.wait(lock, [&] { return job.running == 0; });
    }

  private:
    struct Job {
        void (*call)(const void*, int);
        const void* context;
        int threads, workers = 1, running = 0;  // workers: how many have started, the calling thread among them
    };

    void grow(int size) {
        try {
            for (; size_ < size; ++size_) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {  // the system grants no more: those that there are do the work
        }
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            const auto open = [](const Job* job) { return job->workers < job->threads; };
            auto found = jobs_.end();
            wake_.wait(lock, [&] { return (found = std::find_if(jobs_.begin(), jobs_.end(), open)) != jobs_.end(); });
            Job& job = **found;
            const int worker = job.workers++;
            ++job.running;
            lock.unlock();
            job.call(job.context, worker);
            lock.lock();
            if (--job.running == 0) done_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::vector<Job*> jobs_;
    int size_ = 0;
};
#endif

}  // namespace

void parallel_tasks(int64_t tasks, int threads, Sharing sharing, void (*body)(const void*, int64_t, int),
                    const void* context) {
    watch_forks();
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (threads <= 1 || forked) {
        for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
        return;
    }
    const int shares = sharing == Sharing::in_ranges ? threads : 1;
    std::vector<Range> ranges(shares);
    for (int i = 0; i < shares; ++i) ranges[i].next = tasks * i / shares, ranges[i].end = tasks * (i + 1) / shares;
    const auto work = [&](int worker) {
        for (int i = 0; i < shares; ++i) {
            Range& range = ranges[(worker + i) % shares];
            for (int64_t task = range.next++; task < range.end; task = range.next++) body(context, task, worker);
        }
    };
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    work(omp_get_thread_num());
#else
    static Pool* const pool = new Pool;
    pool->run(threads, work);
#endif
}

}  // namespace pliant
