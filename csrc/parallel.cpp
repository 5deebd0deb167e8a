#include "parallel.h"

#include <atomic>

#ifdef _OPENMP
#include <omp.h>
#ifndef _WIN32
#include <pthread.h>
#endif
#else
#include <thread>
#include <vector>
#endif

namespace pliant {
namespace {

// OpenMP's pool does not survive a fork, so a child process uses a single thread.
std::atomic<bool> forked{false};

void watch_forks() {
#if defined(_OPENMP) && !defined(_WIN32)
    static const int watching = pthread_atfork(nullptr, nullptr, [] { forked = true; });
    (void)watching;
#endif
}

}  // namespace

void parallel_tasks(int64_t tasks, int threads, void (*body)(const void*, int64_t, int), const void* context) {
    watch_forks();
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (threads <= 1 || forked) {
        for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
        return;
    }
    std::atomic<int64_t> next{0};
    const auto work = [&](int worker) {
        for (int64_t task = next++; task < tasks; task = next++) body(context, task, worker);
    };
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    work(omp_get_thread_num());
#else
    std::vector<std::thread> others;
    for (int worker = 1; worker < threads; ++worker) others.emplace_back(work, worker);
    work(0);
    for (auto& other : others) other.join();
#endif
}

}  // namespace pliant
