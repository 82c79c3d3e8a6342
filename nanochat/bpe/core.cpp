// Byte-level BPE: counting words, learning merges, encoding. reference.py says what; this is how it
// is done fast. Plain C++17 and a C interface; native.py compiles and calls it. In order:
//
//   1. Splitting   UTF-8 into pieces: scanner.h
//   2. Words       a hash table whose keys are pieces
//   3. Counting    how often each piece occurs, by many threads
//   4. Learning    the merges
//   5. Encoding    text into ids, by many threads
//   6. The C interface
//
// Ids 0..255 are the bytes, merge number i makes id 256 + i.

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "scanner.h"

namespace {

// ----------------------------------------------------------------------------------- 2. Words

inline u64 mix(u64 a, u64 b) {
    const unsigned __int128 product = (unsigned __int128)a * b;
    return u64(product) ^ u64(product >> 64);
}

// A piece as a key: up to 15 bytes stand in it, with their number in the last byte. Of a longer one
// it holds 56 bits of hash below LONG; the bytes are compared as well.
struct Key {
    u64 low, high;

    static constexpr u64 LONG = u64(0xff) << 56;
    bool is_long() const { return high >= LONG; }
    u64 hash() const { return mix(low ^ 0x9e3779b97f4a7c15, high ^ 0xd1b54a32d192ed03); }
};

inline Key make_key(const u8* p, size_t length, const u8* end) {
    if (length <= 15) {
        u64 low = 0, high = 0;
        if (end - p >= 16) {  // more is read than belongs to it, and masked out
            const size_t in_low = std::min<size_t>(length, 8), in_high = length - in_low;
            low = load8(p) & (~u64(0) >> (64 - 8 * in_low));  // length is at least 1
            high = load8(p + 8) & ((u64(1) << 8 * in_high) - 1);
        } else {
            u8 bytes[16] = {};
            memcpy(bytes, p, length);
            low = load8(bytes);
            high = load8(bytes + 8);
        }
        return {low, high | u64(length) << 56};
    }
    u64 h = length;
    size_t i = 0;
    for (; i + 8 <= length; i += 8) h = mix(h ^ load8(p + i), 0x9e3779b97f4a7c15);
    h = mix(h ^ load8(p + length - 8), 0xd1b54a32d192ed03);
    return {0, h | Key::LONG};
}

struct Piece {
    const u8* start;
    size_t length;
    Key key;
    u64 hash;

    Piece() = default;
    Piece(const u8* p, size_t n, const u8* end) : start(p), length(n), key(make_key(p, n, end)) {
        hash = key.hash();
    }
};

// Memory for copies of long pieces and for lists, all of it given back at once.
class Arena {
    std::vector<std::unique_ptr<u8[]>> blocks;
    size_t used = 0, size = 0;

  public:
    void* take(size_t bytes) {
        bytes = (bytes + 7) & ~size_t(7);
        if (used + bytes > size) {
            const size_t room = std::max(bytes, size_t(1) << 20);
            blocks.emplace_back(new u8[room]);  // may fail: then nothing has changed
            size = room;
            used = 0;
        }
        used += bytes;
        return blocks.back().get() + used - bytes;
    }
};

// Words and something about each; open addressing, linear probing. In a slot the low half of a long
// key is a pointer to the word's length and bytes. A key of zeros is an empty slot.
template <class Value>
struct Table {
    struct alignas(32) Slot {  // of which none is on two lines of the cache
        Key key;
        Value value;

        size_t length() const { return key.is_long() ? *(const u64*)key.low : key.high >> 56; }
        const u8* bytes() const {
            return key.is_long() ? (const u8*)key.low + 8 : (const u8*)&key;
        }
        u64 hash() const { return Key{key.is_long() ? 0 : key.low, key.high}.hash(); }
    };

    std::vector<Slot> slots = std::vector<Slot>(1 << 12);
    size_t used = 0;
    Arena copies;

    void prefetch(u64 hash) const { __builtin_prefetch(&slots[hash & (slots.size() - 1)]); }

    // The value of a piece, zeros if it is new.
    Value& operator[](const Piece& piece) {
        const size_t mask = slots.size() - 1;
        for (size_t i = piece.hash & mask;; i = (i + 1) & mask) {
            Slot& slot = slots[i];
            if (slot.key.high == piece.key.high && is_same(slot, piece)) return slot.value;
            if (slot.key.high == 0) return insert(i, piece);
        }
    }

  private:
    static bool is_same(const Slot& slot, const Piece& piece) {
        if (!piece.key.is_long()) return slot.key.low == piece.key.low;
        return slot.length() == piece.length && !memcmp(slot.bytes(), piece.start, piece.length);
    }

    Value& insert(size_t i, const Piece& piece) {
        if (used * 3 >= slots.size() * 2) {
            grow();
            return (*this)[piece];
        }
        Key key = piece.key;
        if (key.is_long()) {
            u8* copy = (u8*)copies.take(8 + piece.length);
            const u64 length = piece.length;
            memcpy(copy, &length, 8);
            memcpy(copy + 8, piece.start, piece.length);
            key.low = (u64)copy;
        }
        slots[i].key = key;
        used++;
        return slots[i].value;
    }

    void grow() {
        std::vector<Slot> old(slots.size() * 2);
        old.swap(slots);
        const size_t mask = slots.size() - 1;
        for (const Slot& slot : old) {
            if (slot.key.high == 0) continue;
            size_t i = slot.hash() & mask;
            while (slots[i].key.high) i = (i + 1) & mask;
            slots[i] = slot;
        }
    }
};

// Calls visit(piece) for the pieces from p to end. Scanning runs ahead, so that the table's slots are
// on their way from memory before they are needed.
template <class Value, class Visit>
void visit_pieces(const Table<Value>& table, const u8* p, const u8* end, Visit visit) {
    const Scanner scanner;
    Piece ahead[Scanner::MOST];
    const u8* ends[Scanner::MOST];
    while (p < end) {
        const int n = scanner.ends(p, end, ends);
        for (int i = 0; i < n; i++) {
            ahead[i] = Piece(p, ends[i] - p, end);
            table.prefetch(ahead[i].hash);
            p = ends[i];
        }
        for (int i = 0; i < n; i++) visit(ahead[i]);
    }
}

// --------------------------------------------------------------------------------- 3. Counting

// Texts, and long ones in parts, in portions of which a thread takes one after another.
struct Span {
    const u8 *begin, *end;
    i64 text;
};

struct Portions {
    std::vector<Span> spans;
    std::vector<size_t> starts = {0};  // portion i is spans[starts[i]] .. spans[starts[i + 1]]
    static constexpr i64 BYTES = 1 << 18;

    Portions(const u8* const* texts, const i64* lengths, i64 count) {
        const Scanner scanner;
        i64 bytes = 0;
        for (i64 i = 0; i < count; i++) {
            const u8 *p = texts[i], *end = p + lengths[i];
            do {  // also an empty text has a span
                const u8* next = end - p > BYTES ? scanner.find_cut(p + BYTES, end) : end;
                spans.push_back({p, next, i});
                bytes += next - p;
                if (bytes >= BYTES) {
                    starts.push_back(spans.size());
                    bytes = 0;
                }
                p = next;
            } while (p < end);
        }
        if (starts.back() < spans.size()) starts.push_back(spans.size());
    }
    size_t size() const { return starts.size() - 1; }
};

// Runs work(worker, portion) for every portion; a worker is on one thread, at most `threads` are.
template <class Work>
void in_parallel(size_t portions, size_t threads, Work work) {
    threads = std::max<size_t>(1, std::min(threads, portions));
    std::atomic<size_t> next{0};
    std::exception_ptr error;
    std::mutex mutex;
    auto run = [&](size_t worker) {
        try {
            for (size_t i; (i = next++) < portions;) work(worker, i);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            error = std::current_exception();
            next = portions;
        }
    };
    std::vector<std::thread> others;
    try {
        for (size_t i = 1; i < threads; i++) others.emplace_back(run, i);
    } catch (const std::exception&) {  // the system gives no more threads: fewer do the work
    }
    run(0);
    for (std::thread& thread : others) thread.join();
    if (error) std::rethrow_exception(error);
}

struct Counter {
    std::vector<std::unique_ptr<Table<u64>>> tables;  // one a thread

    Table<u64>& table(size_t i) {
        while (tables.size() <= i) tables.emplace_back(new Table<u64>);
        return *tables[i];
    }

    void count(const u8* const* texts, const i64* lengths, i64 n, size_t threads) {
        const Portions portions(texts, lengths, n);
        table(threads - 1);
        in_parallel(portions.size(), threads, [&](size_t worker, size_t i) {
            Table<u64>& words = *tables[worker];
            for (size_t s = portions.starts[i]; s < portions.starts[i + 1]; s++) {
                const Span& span = portions.spans[s];
                visit_pieces(words, span.begin, span.end,
                             [&](const Piece& piece) { words[piece]++; });
            }
        });
    }

    // All counts in the first table.
    Table<u64>& total() {
        Table<u64>& sum = table(0);
        for (size_t t = 1; t < tables.size(); t++) {
            for (const auto& slot : tables[t]->slots) {
                if (!slot.key.high) continue;
                const u8* bytes = slot.bytes();
                sum[Piece(bytes, slot.length(), bytes + slot.length())] += slot.value;
            }
            tables[t].reset();
        }
        tables.resize(1);
        return sum;
    }
};

// --------------------------------------------------------------------------------- 4. Learning
//
// All words stand one after another in `at`, an entry a byte, NONE between words. A token's id
// stands at its first and its last byte. So the neighbours of the token at i are at[i - 1] and
// at[i + length], and no links are needed.
//
// The occurrences of a pair all come into being in one step, the one that makes the younger of its
// two tokens. After it they only get fewer. So a pair's places are a list written once, its weight
// at that time is an upper bound, and no table of pairs is needed: a heap holds the bounds; what
// comes to its top is counted again, and goes back with the smaller number or, if nothing was lost,
// is the most frequent pair.

struct Learner {
    static constexpr u32 INSIDE = 0xfffffffe;  // once the beginning of a token, now inside another

    struct Pair {
        u64 bound;
        u32 left, right;
        u32* places;  // of the left token's first byte, rising
        size_t count;

        // For a heap with the greatest bound on top, of equal ones the smallest pair.
        bool operator<(const Pair& other) const {
            if (bound != other.bound) return bound < other.bound;
            return left != other.left ? left > other.left : right > other.right;
        }
    };
    struct Group {
        u64 weight = 0;
        size_t count = 0;
        u32* places = nullptr;
    };

    std::vector<u32> at;
    std::vector<u32> lengths = std::vector<u32>(256, 1);
    std::vector<Pair> heap;
    std::vector<Group> groups = std::vector<Group>(256);
    Arena lists;
    // Words are in order of falling weight: those of weights[k] reach up to ends[k]. near[i >> 4]
    // is the first k whose end is behind the place i & ~15.
    std::vector<u64> weights;
    std::vector<u32> ends, near;

    explicit Learner(Table<u64>& words) {
        struct Word {
            u64 weight;
            const u8* bytes;
            size_t length;
        };
        std::vector<Word> order;
        order.reserve(words.used);
        u64 size = 1;
        for (const auto& slot : words.slots)
            if (slot.key.high && slot.value) {
                order.push_back({slot.value, slot.bytes(), slot.length()});
                size += slot.length() + 1;
            }
        if (size >= INSIDE) throw std::length_error("the unique words hold more than 4 GiB");
        std::sort(order.begin(), order.end(),
                  [](const Word& a, const Word& b) { return a.weight > b.weight; });
        at.reserve(size);
        at.push_back(NONE);
        for (const Word& word : order) {
            if (weights.empty() || weights.back() != word.weight) {
                weights.push_back(word.weight);
                ends.push_back(0);
            }
            at.insert(at.end(), word.bytes, word.bytes + word.length);
            at.push_back(NONE);
            ends.back() = at.size();
        }
        u32 k = 0;
        for (u64 i = 0; i < size; i += 16) {
            while (k + 1 < ends.size() && ends[k] <= i) k++;
            near.push_back(k);
        }
        words = Table<u64>();
        pair_bytes();
    }

    // Finds the weight of places that rise from call to call.
    struct Weigher {
        const Learner& learner;
        u32 k = 0;

        u64 operator()(u32 place) {
            k = std::max(k, learner.near[place >> 4]);
            while (learner.ends[k] <= place) k++;
            return learner.weights[k];
        }
    };

    // The pairs of bytes.
    void pair_bytes() {
        std::vector<Group> pairs(65536);
        Weigher weight{*this};
        for (size_t i = 1; i + 1 < at.size(); i++)
            if (at[i] != NONE && at[i + 1] != NONE) {
                Group& pair = pairs[at[i] << 8 | at[i + 1]];
                pair.weight += weight(i);
                pair.count++;
            }
        for (u32 p = 0; p < 65536; p++) push(pairs[p], p >> 8, p & 255);
        for (size_t i = 1; i + 1 < at.size(); i++)
            if (at[i] != NONE && at[i + 1] != NONE) *pairs[at[i] << 8 | at[i + 1]].places++ = i;
    }

    // Puts a pair on the heap; its places are filled in afterwards.
    void push(Group& group, u32 left, u32 right) {
        if (!group.count) return;
        group.places = (u32*)lists.take(4 * group.count);
        heap.push_back({group.weight, left, right, group.places, group.count});
        std::push_heap(heap.begin(), heap.end());
    }

    // Drops the places where the pair no longer is; its bound becomes its weight.
    void recount(Pair& pair) {
        const u32 length = lengths[pair.left];
        size_t kept = 0;
        pair.bound = 0;
        Weigher weight{*this};
        for (size_t i = 0; i < pair.count; i++) {
            const u32 place = pair.places[i];
            if (at[place] != pair.left || at[place + length] != pair.right) continue;
            pair.places[kept++] = place;
            pair.bound += weight(place);
        }
        pair.count = kept;
    }

    // Learns at most `most` more merges, writes their pairs, returns how many there were.
    i64 learn(i64 most, u32* pairs) {
        i64 done = 0;
        while (done < most && !heap.empty()) {
            std::pop_heap(heap.begin(), heap.end());
            Pair pair = heap.back();
            heap.pop_back();
            const u64 bound = pair.bound;
            recount(pair);
            if (pair.bound == bound) {
                merge(pair);
                pairs[2 * done] = pair.left;
                pairs[2 * done + 1] = pair.right;
                done++;
            } else if (pair.count) {
                heap.push_back(pair);
                std::push_heap(heap.begin(), heap.end());
            }
        }
        return done;
    }

    std::vector<u32> neighbours, touched;
    std::vector<u64> place_weights;

    void merge(const Pair& pair) {
        const u32 id = lengths.size(), left = lengths[pair.left], right = lengths[pair.right];
        lengths.push_back(left + right);
        groups.emplace_back();
        u32* places = pair.places;
        size_t count = 0;
        place_weights.clear();
        Weigher weight{*this};
        for (size_t i = 0; i < pair.count; i++) {
            const u32 place = places[i];
            // subtle: in "aaa" the second pair is gone once the first is merged.
            if (at[place] != pair.left || at[place + left] != pair.right) continue;
            at[place + left] = INSIDE;
            at[place] = at[place + left + right - 1] = id;
            places[count++] = place;
            place_weights.push_back(weight(place));
        }
        neighbours.resize(count);
        for (size_t i = 0; i < count; i++) {
            const u32 other = at[places[i] - 1];
            neighbours[i] = other == id ? NONE : other;  // that one is its right neighbour's
        }
        push_pairs(places, count, id, true);
        for (size_t i = 0; i < count; i++) neighbours[i] = at[places[i] + left + right];
        push_pairs(places, count, id, false);
    }

    // The new token's pairs with its neighbours on one side, grouped by neighbour.
    void push_pairs(const u32* places, size_t count, u32 id, bool on_the_left) {
        touched.clear();
        for (size_t i = 0; i < count; i++) {
            if (neighbours[i] == NONE) continue;
            Group& group = groups[neighbours[i]];
            if (!group.count++) touched.push_back(neighbours[i]);
            group.weight += place_weights[i];
        }
        for (const u32 other : touched) {
            if (on_the_left) push(groups[other], other, id);
            else push(groups[other], id, other);
        }
        for (size_t i = 0; i < count; i++) {
            if (neighbours[i] == NONE) continue;
            const u32 back = on_the_left ? lengths[neighbours[i]] : 0;
            *groups[neighbours[i]].places++ = places[i] - back;
        }
        for (const u32 other : touched) groups[other] = Group{};
    }
};

// What the C interface trains with: texts are counted until the first merge is asked for.
struct Trainer {
    Counter counter;
    std::unique_ptr<Learner> learner;

    i64 learn(i64 most, u32* pairs) {
        if (!learner) learner = std::make_unique<Learner>(counter.total());
        return learner->learn(most, pairs);
    }
};

// --------------------------------------------------------------------------------- 5. Encoding

// Merge numbers by pair of ids. A slot is one number, 21 bits each for left id, right id and rank,
// so that the table of 65,536 merges takes 1 MB.
class Ranks {
    static constexpr u64 EMPTY = ~u64(0), MOST = 1 << 21;
    std::vector<u32> of_bytes = std::vector<u32>(65536, NONE);
    std::vector<u64> slots;
    size_t mask;

    static u64 hash(u64 pair) { return mix(pair, 0x9e3779b97f4a7c15); }
    static u64 joined(u64 left, u64 right) { return left << 21 | right; }

  public:
    Ranks(const u32* pairs, size_t count) {
        if (256 + count >= MOST) throw std::length_error("more than 2 million ids");
        size_t size = 16;
        while (size < 2 * count) size *= 2;
        slots.assign(size, EMPTY);
        mask = size - 1;
        for (size_t rank = 0; rank < count; rank++) {
            const u32 left = pairs[2 * rank], right = pairs[2 * rank + 1];
            if (left >= 256 + rank || right >= 256 + rank)
                throw std::invalid_argument("merge " + std::to_string(rank) +
                                            " uses an id that only a later merge makes");
            if ((*this)(left, right) != NONE)
                throw std::invalid_argument("merge " + std::to_string(rank) + " occurs twice");
            if ((left | right) < 256) {
                of_bytes[left << 8 | right] = rank;
                continue;
            }
            const u64 pair = joined(left, right);
            size_t i = hash(pair) & mask;
            while (slots[i] != EMPTY) i = (i + 1) & mask;
            slots[i] = pair << 21 | rank;
        }
    }

    // The number of the merge of this pair; NONE if there is none.
    u32 operator()(u32 left, u32 right) const {
        if ((left | right) < 256) return of_bytes[left << 8 | right];
        const u64 pair = joined(left, right);
        for (size_t i = hash(pair) & mask;; i = (i + 1) & mask) {
            if (slots[i] >> 21 == pair) return slots[i] & (MOST - 1);
            if (slots[i] == EMPTY) return NONE;
        }
    }
};

// Merges a short piece in place, always the pair learned first; returns how many ids are left.
size_t merge_short(const Ranks& ranks, const u8* piece, size_t n, u32* ids) {
    u32 rank[256];  // rank[i]: of ids[i] and ids[i + 1]
    for (size_t i = 0; i < n; i++) ids[i] = piece[i];
    for (size_t i = 0; i + 1 < n; i++) rank[i] = ranks(ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == NONE) break;
        ids[best] = 256 + rank[best];
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof(u32));
        if (best + 1 < n) {
            memmove(rank + best + 1, rank + best + 2, (n - best - 2) * sizeof(u32));
            rank[best] = ranks(ids[best], ids[best + 1]);
        }
        if (best > 0) rank[best - 1] = ranks(ids[best - 1], ids[best]);
    }
    return n;
}

// The same for a piece of any length, in O(n log n): a heap of (rank, place), with links.
size_t merge_long(const Ranks& ranks, const u8* piece, size_t n, u32* ids) {
    if (n >= NONE) throw std::length_error("a piece of text without a boundary is over 4 GiB long");
    std::vector<u32> next(n + 1), previous(n + 1);
    std::vector<u64> heap;
    const auto greater = [](u64 a, u64 b) { return a > b; };
    // Puts the pair that begins at a place on the heap, if there is a merge of it.
    const auto add = [&](u32 place) {
        const u32 rank = next[place] == n ? NONE : ranks(ids[place], ids[next[place]]);
        if (rank == NONE) return;
        heap.push_back(u64(rank) << 32 | place);
        std::push_heap(heap.begin(), heap.end(), greater);
    };
    for (size_t i = 0; i < n; i++) {
        ids[i] = piece[i];
        next[i] = i + 1;
        previous[i] = i ? i - 1 : NONE;
    }
    for (size_t i = 0; i + 1 < n; i++) {
        const u32 rank = ranks(ids[i], ids[i + 1]);
        if (rank != NONE) heap.push_back(u64(rank) << 32 | i);
    }
    std::make_heap(heap.begin(), heap.end(), greater);
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), greater);
        const u32 rank = heap.back() >> 32, place = u32(heap.back());
        heap.pop_back();
        // Outdated, unless the pair is still there. A place inside a token has the id NONE.
        if (ids[place] == NONE || next[place] == n) continue;
        if (ranks(ids[place], ids[next[place]]) != rank) continue;
        const u32 gone = next[place], before = previous[place];
        ids[place] = 256 + rank;
        ids[gone] = NONE;
        next[place] = next[gone];
        previous[next[gone]] = place;
        add(place);
        if (before != NONE) add(before);
    }
    return std::remove(ids, ids + n, NONE) - ids;
}

struct Encoder {
    // The ids of a word that was met before: up to three here, more at spilled[ids[0]].
    struct Known {
        u32 count;
        u32 ids[3];
    };
    struct Worker {
        Table<Known> known;
        std::vector<u32> spilled, buffer;
    };
    static constexpr size_t KNOWN_WORDS = 1 << 20;  // a worker's words; after that it starts anew
    static constexpr size_t KEPT_IDS = 1 << 22;  // room that a worker keeps between batches
    static constexpr size_t KNOWN_LENGTH = 64, SHORT = 256, SLACK = 2;

    const Ranks ranks;
    const std::vector<u32> names;  // what is written for an id
    std::mutex mutex;
    std::vector<std::unique_ptr<Worker>> idle;

    Encoder(const u32* pairs, i64 count, const u32* ids)
        : ranks(pairs, count), names(ids, ids + 256 + count) {}

    std::unique_ptr<Worker> borrow() {
        const std::lock_guard<std::mutex> lock(mutex);
        if (idle.empty()) return std::make_unique<Worker>();
        std::unique_ptr<Worker> worker = std::move(idle.back());
        idle.pop_back();
        return worker;
    }
    void give_back(std::unique_ptr<Worker> worker) {
        if (worker->buffer.size() > KEPT_IDS) std::vector<u32>().swap(worker->buffer);
        const std::lock_guard<std::mutex> lock(mutex);
        idle.push_back(std::move(worker));
    }

    size_t merge(const Piece& piece, u32* out) const {
        const bool is_short = piece.length <= SHORT;
        const size_t n = is_short ? merge_short(ranks, piece.start, piece.length, out)
                                  : merge_long(ranks, piece.start, piece.length, out);
        for (size_t i = 0; i < n; i++) out[i] = names[out[i]];
        return n;
    }

    // Writes the ids of a span, at most one a byte, and up to SLACK more behind them; returns where
    // the ids end.
    u32* encode(Worker& worker, const u8* begin, const u8* end, u32* out) const {
        if (worker.known.used > KNOWN_WORDS) {
            worker.known = Table<Known>();
            worker.spilled.clear();
        }
        visit_pieces(worker.known, begin, end, [&](const Piece& piece) {
            if (piece.length > KNOWN_LENGTH) {
                out += merge(piece, out);
                return;
            }
            Known& known = worker.known[piece];
            if (!known.count) {
                const u32 count = merge(piece, out);
                if (count > 3) {
                    known.ids[0] = worker.spilled.size();
                    worker.spilled.insert(worker.spilled.end(), out, out + count);
                } else {
                    memcpy(known.ids, out, count * sizeof(u32));
                }
                known.count = count;
            }
            if (known.count > 3) {
                memcpy(out, &worker.spilled[known.ids[0]], known.count * sizeof(u32));
            } else {
                memcpy(out, known.ids, sizeof known.ids);  // always three: no branch to mispredict
            }
            out += known.count;
        });
        return out;
    }
};

// Encodes n texts: writes their ids, one text after another, and how many each has; returns how many
// there are.
template <class Id>
i64 encode_batch(Encoder& encoder, const u8* const* texts, const i64* lengths, i64 n,
                 size_t threads, Id* ids, i64* counts) {
    const Portions todo(texts, lengths, n);
    std::vector<std::vector<Id>> made(todo.size());
    std::vector<std::unique_ptr<Encoder::Worker>> workers(threads);
    std::vector<i64> span_counts(todo.spans.size());
    in_parallel(todo.size(), threads, [&](size_t w, size_t i) {
        if (!workers[w]) workers[w] = encoder.borrow();
        Encoder::Worker& worker = *workers[w];
        const size_t first = todo.starts[i], last = todo.starts[i + 1];
        size_t room = Encoder::SLACK;
        for (size_t s = first; s < last; s++) room += todo.spans[s].end - todo.spans[s].begin;
        if (worker.buffer.size() < room) worker.buffer.resize(room);
        u32* out = worker.buffer.data();
        for (size_t s = first; s < last; s++) {
            u32* next = encoder.encode(worker, todo.spans[s].begin, todo.spans[s].end, out);
            span_counts[s] = next - out;
            out = next;
        }
        made[i].assign(worker.buffer.data(), out);
    });
    for (auto& worker : workers)
        if (worker) encoder.give_back(std::move(worker));
    std::fill(counts, counts + n, 0);
    for (size_t s = 0; s < todo.spans.size(); s++) counts[todo.spans[s].text] += span_counts[s];
    std::vector<size_t> starts = {0};
    for (const auto& part : made) starts.push_back(starts.back() + part.size());
    in_parallel(made.size(), threads, [&](size_t, size_t i) {
        std::copy(made[i].begin(), made[i].end(), ids + starts[i]);
    });
    return starts.back();
}

// --------------------------------------------------------------------------- 6. The C interface

thread_local std::string message;

// What `work` returns, or `failed` with the reason in `message`: no exception leaves this file.
template <class Result, class Work>
Result guarded(Result failed, Work work) {
    try {
        return work();
    } catch (const std::exception& error) {
        message = error.what();
        return failed;
    }
}

}  // namespace

extern "C" {

const char* bpe_error() { return message.c_str(); }

// Writes where each piece of a text ends (`ends` has room for `length` of them); how many.
i64 bpe_split(const u8* text, i64 length, i64* ends) {
    const Scanner scanner;
    const u8* found[Scanner::MOST];
    i64 count = 0;
    for (const u8* p = text; p < text + length;) {
        const int n = scanner.ends(p, text + length, found);
        for (int i = 0; i < n; i++) ends[count++] = found[i] - text;
        p = found[n - 1];
    }
    return count;
}

// Splits texts and counts their pieces, for a trainer. 0, or -1 for failure.
Trainer* bpe_trainer() { return guarded((Trainer*)nullptr, [] { return new Trainer; }); }
void bpe_trainer_free(Trainer* trainer) { delete trainer; }
int bpe_count(Trainer* trainer, const u8* const* texts, const i64* lengths, i64 n, int threads) {
    return guarded(-1, [&] { return trainer->counter.count(texts, lengths, n, threads), 0; });
}
// Writes the pairs of at most so many more merges; returns how many there were. Nothing is counted
// after the first call.
i64 bpe_learn(Trainer* trainer, i64 most, u32* pairs) {
    return guarded(i64(-1), [&] { return trainer->learn(most, pairs); });
}

// ids[i] is what is written for id i; 256 + count of them.
Encoder* bpe_encoder(const u32* pairs, i64 count, const u32* ids) {
    return guarded((Encoder*)nullptr, [&] { return new Encoder(pairs, count, ids); });
}
void bpe_encoder_free(Encoder* encoder) { delete encoder; }

// Writes the ids of one text, for which there is room for length + 2; returns how many.
i64 bpe_encode(Encoder* encoder, const u8* text, i64 length, u32* out) {
    return guarded(i64(-1), [&] {
        auto worker = encoder->borrow();
        const u32* end = encoder->encode(*worker, text, text + length, out);
        encoder->give_back(std::move(worker));
        return i64(end - out);
    });
}
// The same for n texts; ids take `width` bytes, 2 or 4, and have room for one a byte of text.
i64 bpe_encode_batch(Encoder* encoder, const u8* const* texts, const i64* lengths, i64 n,
                     int threads, int width, void* ids, i64* counts) {
    return guarded(i64(-1), [&] {
        return width == 2
                   ? encode_batch(*encoder, texts, lengths, n, threads, (uint16_t*)ids, counts)
                   : encode_batch(*encoder, texts, lengths, n, threads, (u32*)ids, counts);
    });
}

}  // extern "C"
