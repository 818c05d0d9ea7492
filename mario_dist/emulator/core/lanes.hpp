// Many machines with one cartridge, run together on a few threads.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

#include "machine.hpp"
#include "picture.hpp"

namespace nes {

// Threads that do `work(0) ... work(n - 1)`, the caller's among them. Between calls they sleep, but not at once:
// to wake a thread can take longer than to run a lane.
class ThreadPool {
public:
    explicit ThreadPool(int threads);  // including the caller
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    void run(int n, const std::function<void(int)>& work);

    // A forked process has a copy of the pool and none of its threads, and one of them may have held a lock.
    bool forked() const { return getpid() != process_; }

private:
    void serve();
    void take_work();
    void stop();

    std::mutex callers_, mutex_;
    std::condition_variable start_, done_;
    const std::function<void(int)>* work_ = nullptr;
    int next_ = 0, end_ = 0;
    std::atomic<int> unfinished_{0};
    std::atomic<u64> calls_{0};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> threads_;
    const pid_t process_ = getpid();
};

// To end a forked pool would be to wait for its threads for ever.
struct ForgetInFork {
    void operator()(ThreadPool* pool) const;
};

class Lanes {
public:
    // Where nobody will ask for `picture` after `run`, it does not keep them, nor draw what the resizer masks.
    Lanes(std::shared_ptr<const Rom> rom, int n, int threads, bool keep_pictures);

    int size() const { return static_cast<int>(machines_.size()); }
    Machine& machine(int lane) { return machines_[lane]; }

    // One lane, one frame, and its picture is kept.
    void step(int lane, u8 joypad);

    // For each i of `count`: lane `lanes[i]` runs `frames[i]` frames with `joypads[i]` held, draws the last one,
    // and writes what it looks like to row lanes[i] of `ram` [N, 2048] and `frames_out` [N, height, width].
    // Lanes are named once each.
    void run(int count, const std::int64_t* lanes, const u8* joypads, const std::int64_t* frames,
             const AreaResizer& resizer, u8* ram, u8* frames_out);

    // NES colours [240, 256] of a lane's last frame. Throws std::runtime_error where they were not kept.
    const u8* picture(int lane) const;

private:
    using Picture = std::array<u8, kHeight * kWidth>;

    std::shared_ptr<const Rom> rom_;
    bool keep_pictures_;
    std::vector<Machine> machines_;
    std::vector<std::unique_ptr<Picture>> pictures_;
    std::unique_ptr<ThreadPool, ForgetInFork> pool_;
};

}  // namespace nes
