#include "lanes.hpp"

#include <chrono>
#include <cstring>
#include <stdexcept>

namespace nes {

namespace {

// Wait for a while for what is likely to be there soon; whoever else wants the core may have it.
template <typename Condition>
void wait_awake(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
    while (!condition() && std::chrono::steady_clock::now() < end)
        std::this_thread::yield();
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
    try {
        for (int i = 1; i < threads; ++i)
            threads_.emplace_back([this] { serve(); });
    } catch (...) {  // the system gives no more threads
        stop();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    start_.notify_all();
    for (auto& thread : threads_)
        thread.join();
}

void ThreadPool::run(int n, const std::function<void(int)>& work) {
    std::unique_lock one_at_a_time(callers_, std::defer_lock);
    if (!forked())
        one_at_a_time.lock();
    if (threads_.empty() || n < 2 || forked()) {
        for (int i = 0; i < n; ++i)
            work(i);
        return;
    }
    std::unique_lock lock(mutex_);
    work_ = &work;
    next_ = 0;
    end_ = unfinished_ = n;
    ++calls_;
    lock.unlock();
    start_.notify_all();
    lock.lock();
    take_work();
    lock.unlock();
    wait_awake([this] { return unfinished_ == 0; });
    lock.lock();
    done_.wait(lock, [this] { return unfinished_ == 0; });
}

void ThreadPool::serve() {
    for (u64 served = 0;;) {
        const auto called = [&] { return stop_ || calls_ != served; };
        wait_awake(called);
        std::unique_lock lock(mutex_);
        start_.wait(lock, called);
        if (stop_)
            return;
        served = calls_;
        take_work();
    }
}

// Called with the mutex held; it is free while work is done.
void ThreadPool::take_work() {
    while (next_ < end_) {
        const int i = next_++;
        mutex_.unlock();
        (*work_)(i);
        mutex_.lock();
        if (--unfinished_ == 0)
            done_.notify_one();
    }
}

void ForgetInFork::operator()(ThreadPool* pool) const {
    if (!pool->forked())
        delete pool;
}

Lanes::Lanes(std::shared_ptr<const Rom> rom, int n, int threads, bool keep_pictures)
    : rom_(std::move(rom)),
      keep_pictures_(keep_pictures),
      machines_(n, Machine(*rom_)),
      pictures_(n),
      pool_(new ThreadPool(threads), ForgetInFork{}) {}

void Lanes::step(int lane, u8 joypad) {
    if (!pictures_[lane])
        pictures_[lane] = std::make_unique<Picture>();
    machines_[lane].run_frame(joypad, pictures_[lane]->data());
}

void Lanes::run(int count, const std::int64_t* lanes, const u8* joypads, const std::int64_t* frames,
                const AreaResizer& resizer, u8* ram, u8* frames_out) {
    const std::size_t pixels = static_cast<std::size_t>(resizer.height()) * resizer.width();
    const int first_line = keep_pictures_ ? 0 : resizer.masked_rows();
    pool_->run(count, [&](int i) {
        // One picture for all lanes of a thread stays in its cache.
        static thread_local Picture shared;
        const auto lane = static_cast<std::size_t>(lanes[i]);
        if (!keep_pictures_)
            pictures_[lane].reset();
        else if (!pictures_[lane])
            pictures_[lane] = std::make_unique<Picture>();
        u8* picture = keep_pictures_ ? pictures_[lane]->data() : shared.data();
        for (std::int64_t frame = 1; frame < frames[i]; ++frame)
            machines_[lane].run_frame(joypads[i]);
        machines_[lane].run_frame(joypads[i], picture, first_line);
        std::memcpy(ram + lane * kRamBytes, machines_[lane].ram(), kRamBytes);
        resizer(picture, frames_out + lane * pixels);
    });
}

const u8* Lanes::picture(int lane) const {
    if (!pictures_[lane])
        throw std::runtime_error("this lane has no picture: it has not run, or its pictures are not kept");
    return pictures_[lane]->data();
}

}  // namespace nes
