// Text into pieces by Llama-3's pattern, without a regular expression. The first part of core.cpp.
//
// (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N}{1,3} | ?[^\s\p{L}\p{N}]+[\r\n]*
// | \s*[\r\n]+ | \s+(?!\S) | \s+
//
// It is done twice. Scanner::next finds one piece in any text; each of its branches is one of these
// alternatives, the first that matches wins. Scanner::starts finds all pieces in 64 bytes of ASCII
// with a few operations on sets of them, and no branch to mispredict. That is three times as fast.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "unicode_ranges.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "core.cpp reads bytes as little-endian integers; this machine is big-endian"
#endif

namespace {

using u8 = uint8_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i64 = int64_t;

constexpr u32 NONE = 0xffffffff;
constexpr u64 ONES = 0x0101010101010101, HIGH = 0x80 * ONES;

inline u64 load8(const u8* p) {
    u64 x;
    memcpy(&x, p, 8);
    return x;
}

enum Class : u8 { OTHER, LETTER, NUMBER, SPACE, NEWLINE };  // \r and \n are no SPACE here

struct Classes {
    std::vector<u8> of;  // by code point

    Classes() : of(0x110000, OTHER) {
        fill(LETTERS, sizeof LETTERS, LETTER);
        fill(NUMBERS, sizeof NUMBERS, NUMBER);
        fill(SPACES, sizeof SPACES, SPACE);
        of['\r'] = of['\n'] = NEWLINE;
    }
    void fill(const u32* ranges, size_t bytes, Class c) {
        for (size_t i = 0; i < bytes / 4; i += 2)
            std::fill(of.begin() + ranges[i], of.begin() + ranges[i + 1] + 1, c);
    }
};

const u8* classes() {
    static const Classes table;
    return table.of.data();
}

inline bool continues(u8 byte) { return (byte & 0xc0) == 0x80; }

// The code point at p, and its length. NONE and 1 where there is no valid UTF-8: such a byte is a
// character of its own. Cut off, overlong, a surrogate, above U+10FFFF: none of them is valid.
inline u32 code_point(const u8* p, const u8* end, int& length) {
    const u8 a = p[0];
    const i64 room = end - p;
    length = 1;
    if (a < 0x80) return a;
    if (a < 0xe0) {
        if (a < 0xc2 || room < 2 || !continues(p[1])) return NONE;
        length = 2;
        return (a & 0x1f) << 6 | (p[1] & 0x3f);
    }
    if (a < 0xf0) {
        if (room < 3 || !continues(p[1]) || !continues(p[2])) return NONE;
        const u32 c = (a & 0x0f) << 12 | (p[1] & 0x3f) << 6 | (p[2] & 0x3f);
        if (c < 0x800 || (c >= 0xd800 && c < 0xe000)) return NONE;
        length = 3;
        return c;
    }
    if (a > 0xf4 || room < 4) return NONE;
    if (!continues(p[1]) || !continues(p[2]) || !continues(p[3])) return NONE;
    const u32 c = (a & 0x07) << 18 | (p[1] & 0x3f) << 12 | (p[2] & 0x3f) << 6 | (p[3] & 0x3f);
    if (c < 0x10000 || c > 0x10ffff) return NONE;
    length = 4;
    return c;
}

// Sets of the 64 bytes at p, a bit for each. `plain` are those that the other sets tell apart:
// printable ASCII, tabs and newlines.
struct Block {
    using Bytes = u8 __attribute__((vector_size(16)));

    u64 plain = 0, letters = 0, numbers = 0, spaces = 0, blanks = 0, newlines = 0, apostrophes = 0;

    explicit Block(const u8* p) {
        for (int i = 0; i < 64; i += 16) {
            Bytes x;
            memcpy(&x, p + i, 16);
            const Bytes space = Bytes(x == ' '), tab = Bytes(x == '\t');
            const Bytes newline = Bytes(x == '\n') | Bytes(x == '\r');
            plain |= bits(within(x, ' ', '~') | tab | newline) << i;
            letters |= bits(within(x | 0x20, 'a', 'z')) << i;
            numbers |= bits(within(x, '0', '9')) << i;
            spaces |= bits(space) << i;
            blanks |= bits(space | tab) << i;
            newlines |= bits(newline) << i;
            apostrophes |= bits(Bytes(x == '\'')) << i;
        }
    }

  private:
    static Bytes within(Bytes x, u8 first, u8 last) {
        return Bytes(Bytes(x - first) <= u8(last - first));
    }

    // A bit for each byte, which is 0 or 255.
    static u64 bits(Bytes x) {
#ifdef __SSE2__
        return _mm_movemask_epi8((__m128i)x);
#else
        u64 halves[2];
        memcpy(halves, &x, 16);
        constexpr u64 gather = 0x0102040810204080;  // the product's highest byte has the eight bits
        const u64 low = (halves[0] & ONES) * gather, high = (halves[1] & ONES) * gather;
        return low >> 56 | high >> 56 << 8;
#endif
    }
};

struct Scanner {
    const u8* const of = classes();

    Class look(const u8* p, const u8* end, int& length) const {
        const u32 c = code_point(p, end, length);
        return c == NONE ? OTHER : Class(of[c]);
    }

    // The end of the run of letters that goes on at p. English is nearly all here, so eight bytes
    // are looked at together: the high bit of each byte of `letters` says whether it is in A-Za-z.
    const u8* letters(const u8* p, const u8* end) const {
        for (;;) {
            while (end - p >= 8) {
                const u64 x = load8(p), low = (x | 0x20 * ONES) & ~HIGH;
                const u64 letters = (low + (0x80 - 'a') * ONES) & ~(low + (0x7f - 'z') * ONES) & ~x;
                const u64 others = ~letters & HIGH;
                if (others) {
                    p += __builtin_ctzll(others) >> 3;
                    break;
                }
                p += 8;
            }
            while (p < end && *p < 0x80 && of[*p] == LETTER) p++;
            int n;
            if (p == end || *p < 0x80 || look(p, end, n) != LETTER) return p;
            p += n;
        }
    }

    // The length of 's 't 'm 'd 're 've 'll, in either case, where p is at the apostrophe; or 0.
    static int contraction(const u8* p, const u8* end) {
        if (end - p < 2) return 0;
        const int a = p[1] | 0x20;
        if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
        if (end - p < 3) return 0;
        if (p[1] == 0xc5 && p[2] == 0xbf) return 3;  // subtle: U+017F is another lower case of S
        const int b = p[2] | 0x20;
        return (b == 'e' && (a == 'r' || a == 'v')) || (b == 'l' && a == 'l') ? 3 : 0;
    }

    // The end of the piece that begins at p; p < end.
    const u8* next(const u8* p, const u8* end) const {
        int n;
        const Class first = look(p, end, n);
        if (first == LETTER) return letters(p + n, end);
        const u8* q = p + n;
        if (first == NUMBER) {
            for (int i = 0; i < 2 && q < end && look(q, end, n) == NUMBER; i++) q += n;
            return q;
        }
        if (*p == '\'')
            if (const int length = contraction(p, end)) return p + length;
        if (q == end) return q;
        const Class second = look(q, end, n);
        if (second == LETTER && first != NEWLINE) return letters(q + n, end);
        if (first == OTHER || (*p == ' ' && second == OTHER)) {
            while (q < end && look(q, end, n) == OTHER) q += n;
            while (q < end && of[*q] == NEWLINE) q++;
            return q;
        }
        return spaces(p, end);
    }

    // White space: up to its last newline; without one, all but its last character, which goes to
    // what follows; all of it at the end of the text or where it is one character.
    const u8* spaces(const u8* p, const u8* end) const {
        const u8 *q = p, *last = p, *after_newline = nullptr;
        while (q < end) {
            const u8* const blanks = q;
            q = skip_blanks(q, end);
            if (q > blanks) last = q - 1;
            int n;
            const Class c = q < end ? look(q, end, n) : OTHER;
            if (c != SPACE && c != NEWLINE) break;
            last = q;
            q += n;
            if (c == NEWLINE) after_newline = q;
        }
        if (after_newline) return after_newline;
        return q == end || last == p ? q : last;
    }

    // Code is full of them.
    static const u8* skip_blanks(const u8* p, const u8* end) {
        for (; end - p >= 8; p += 8) {
            const u64 others = load8(p) ^ 0x2020202020202020;
            if (others) return p + (__builtin_ctzll(others) >> 3);
        }
        while (p < end && *p == ' ') p++;
        return p;
    }

    // Where pieces begin among the 64 bytes at p, where one does: bit i for p[i], without bit 0, as
    // far as these bytes alone can tell. 0: they cannot. `end` is at least 64 bytes away.
    static u64 starts(const u8* p, const u8* end) {
        const Block block(p);
        const u64 L = block.letters, N = block.numbers, S = block.blanks, R = block.newlines;
        const u64 O = block.plain & ~(L | N | S | R);
        // What is known ends at a byte that is not plain, or at a newline behind a blank: up to
        // which newline a piece goes could stand anywhere. What a last white space belongs to
        // depends on what follows: of it only the first place is sure.
        const u64 unknown = ~block.plain | (R & S << 1);
        const u64 known = unknown ? (unknown & -unknown) - 1 : ~u64(0);
        const u64 text = known & ~(S | R);
        if (!text) return 0;
        const u64 sure = known & ((u64(2) << (63 - __builtin_clzll(text))) * 2 - 1);

        const u64 other = O & ~(O << 1) & ~(block.spaces << 1);  // " (" is one piece
        const u64 letter = L & ~(L << 1) & ~(S << 1) & ~(other << 1);
        const u64 newline = R & ~(R << 1) & ~(O << 1);
        const u64 blank = S & ~(S << 1 & S >> 1);  // the first of several, and the last
        u64 found = other | letter | newline | blank;
        for (u64 n = N & ~(N << 1); n; n = n << 3 & N & N << 1 & N << 2) found |= n;
        for (u64 a = other & block.apostrophes & L >> 1; a; a &= a - 1) {
            const int i = __builtin_ctzll(a), length = contraction(p + i, end);
            if (length && i + length < 64) found |= u64(1) << (i + length);
        }
        return found & sure & ~u64(1);
    }

    // Writes the ends of the next pieces from p on, at least one and at most MOST; how many.
    static constexpr int MOST = 128;
    int ends(const u8* p, const u8* end, const u8** out) const {
        int n = 0;
        while (n <= MOST - 64 && p < end) {
            const bool try_block = end - p >= 64 && !(load8(p) & HIGH);
            u64 found = try_block ? starts(p, end) : 0;
            if (!found) out[n++] = p = next(p, end);
            for (const u8* const first = p; found; found &= found - 1)
                out[n++] = p = first + __builtin_ctzll(found);
        }
        return n;
    }

    // The first place from p on where a piece begins whatever stands before and behind: between a
    // letter and a blank, or between a newline and what is no white space. `end` if there is none.
    const u8* find_cut(const u8* p, const u8* end) const {
        for (; p < end; p++) {
            if (*p == ' ' && p[-1] < 0x80 && of[p[-1]] == LETTER) return p;
            int n;
            if (p[-1] == '\n' && look(p, end, n) != SPACE && *p != '\r' && *p != '\n') return p;
        }
        return end;
    }
};

}  // namespace
