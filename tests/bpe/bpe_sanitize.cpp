// core.cpp with odd input, compiled by runs/sanitize.sh with the sanitizers. Every text lies in
// memory of exactly its size, so that a byte read beyond its end is found.

#include "../../nanochat/bpe/core.cpp"

#include <cstdio>
#include <cstdlib>
#include <random>

namespace {

std::mt19937_64 rng(1);

void check(bool right, const char* what) {
    if (right) return;
    fprintf(stderr, "wrong: %s (%s)\n", what, bpe_error());
    exit(1);
}

// What core.cpp takes, each text in memory of its own.
struct Texts {
    std::vector<std::unique_ptr<u8[]>> owned;
    std::vector<const u8*> addresses;
    std::vector<i64> lengths;

    void add(const std::string& text) {
        owned.emplace_back(new u8[text.size()]);
        memcpy(owned.back().get(), text.data(), text.size());
        addresses.push_back(owned.back().get());
        lengths.push_back(text.size());
    }
    i64 size() const { return addresses.size(); }
};

std::string pick(const std::vector<std::string>& parts, size_t count) {
    std::string text;
    for (size_t i = 0; i < count; i++) text += parts[rng() % parts.size()];
    return text;
}

// One of 26 to the 9th.
std::string random_word() {
    std::string word(9, ' ');
    for (char& c : word) c = 'a' + rng() % 26;
    return word;
}

std::string repeated(const std::string& part, size_t count) {
    std::string text;
    while (count--) text += part;
    return text;
}

Texts odd_texts() {
    const std::vector<std::string> parts = {
        "a", "b", "Z", "é", "你", "ſ", "'", "'s", "'LL", " ", "  ", "\n", "\r\n", "1", "٣", "Ⅻ", ".",
        "=", "🙂", "\u3000", "\u2028", "\xff", "\xe2\x82", "\xf0\x9f\x99", "\xed\xa0\x80", "\xc0\x80",
        "\xf4\x90\x80\x80", std::string(1, '\0'), "the", " the", "longerthanfifteenbytes", "    "};
    Texts texts;
    texts.add("");
    for (const std::string& part : parts) texts.add(part);
    for (int i = 0; i < 3000; i++) texts.add(pick(parts, rng() % 30));
    const std::vector<std::string> plain = {"a", "word", "'", "'ll", " ", "        ", "\t", "\n", "12", "()"};
    for (int i = 0; i < 300; i++) texts.add(pick(plain, 64 + rng() % 100));
    for (int i = 0; i < 300; i++) {
        std::string bytes(rng() % 64, 0);
        for (char& byte : bytes) byte = char(rng());
        texts.add(bytes);
    }
    for (size_t n : {15, 16, 17, 255, 256, 257, 5000}) {
        texts.add(repeated("a", n));
        texts.add(repeated("ab", n));
        texts.add(repeated(" ", n));
        texts.add(repeated("é", n));
        texts.add(repeated("=-", n));
    }
    texts.add(pick(parts, 200'000));             // cut into portions
    texts.add(repeated("word after word. ", 60'000));
    texts.add(repeated("nobreak", 60'000));      // one piece over 256 KiB
    return texts;
}

template <class Id>
std::vector<Id> batch(Encoder* encoder, const Texts& texts, int threads, std::vector<i64>& counts) {
    i64 bytes = 0;
    for (const i64 length : texts.lengths) bytes += length;
    std::vector<Id> ids(bytes);
    const i64 n = bpe_encode_batch(encoder, texts.addresses.data(), texts.lengths.data(),
                                   texts.size(), threads, sizeof(Id), ids.data(), counts.data());
    check(n >= 0, "a batch is encoded");
    ids.resize(n);
    return ids;
}

void encode_all(Encoder* encoder, const Texts& texts, const std::vector<std::string>& tokens,
                int threads) {
    std::vector<i64> counts(texts.size()), again(texts.size());
    const std::vector<u32> ids = batch<u32>(encoder, texts, threads, counts);
    const std::vector<uint16_t> narrow = batch<uint16_t>(encoder, texts, threads, again);
    check(std::equal(ids.begin(), ids.end(), narrow.begin(), narrow.end()) && counts == again,
          "2 and 4 bytes agree");
    size_t at = 0;
    for (i64 i = 0; i < texts.size(); i++) {
        std::vector<u32> alone(texts.lengths[i] + 2);
        const i64 n = bpe_encode(encoder, texts.addresses[i], texts.lengths[i], alone.data());
        check(n == counts[i] && std::equal(alone.begin(), alone.begin() + n, ids.begin() + at),
              "one text and the batch agree");
        std::string bytes;
        for (i64 k = 0; k < n; k++) bytes += tokens[ids[at++]];
        check(bytes == std::string((const char*)texts.addresses[i], texts.lengths[i]), "round trip");
    }
    check(at == ids.size(), "offsets end at the last id");
}

std::vector<u32> train(const Texts& texts, int threads) {
    Trainer* trainer = bpe_trainer();
    for (int round = 0; round < 2; round++)
        check(!bpe_count(trainer, texts.addresses.data(), texts.lengths.data(), texts.size(), threads),
              "texts are counted");
    std::vector<u32> pairs(2 * 3000);
    i64 done = 0;
    for (i64 n = 1; n > 0 && done < 3000; done += n)
        n = bpe_learn(trainer, std::min<i64>(700, 3000 - done), pairs.data() + 2 * done);
    bpe_trainer_free(trainer);
    pairs.resize(2 * done);
    return pairs;
}

// Weights beyond 32 bits, which no text that is counted here reaches.
std::vector<u32> train_on_heavy_words() {
    const std::string words[] = {"ab", "cd", "ce"};
    const u64 weights[] = {u64(1) << 34, u64(1) << 33, (u64(1) << 34) + 2};
    Table<u64> table;
    for (int i = 0; i < 3; i++)
        table[Piece((const u8*)words[i].data(), 2, (const u8*)words[i].data() + 2)] = weights[i];
    std::vector<u32> pairs(2 * 9);
    pairs.resize(2 * Learner(table).learn(9, pairs.data()));
    return pairs;
}

}  // namespace

int main() {
    const Texts texts = odd_texts();
    for (i64 i = 0; i < texts.size(); i++) {
        std::vector<i64> ends(texts.lengths[i]);
        const i64 n = bpe_split(texts.addresses[i], texts.lengths[i], ends.data());
        check(n ? ends[n - 1] == texts.lengths[i] : !texts.lengths[i], "pieces reach the end");
    }
    const std::vector<u32> pairs = train(texts, 1);
    check(train(texts, 4) == pairs, "1 and 4 threads learn the same");
    check(train(Texts(), 2).empty(), "nothing is learned from nothing");
    const std::vector<u32> expected = {99, 101, 97, 98, 99, 100};
    check(train_on_heavy_words() == expected, "weights of 64 bits");

    std::vector<std::string> tokens;
    std::vector<u32> ids;
    for (u32 i = 0; i < 256 + pairs.size() / 2; i++) {
        ids.push_back(i);
        const u32* pair = i < 256 ? nullptr : &pairs[2 * (i - 256)];
        tokens.push_back(pair ? tokens[pair[0]] + tokens[pair[1]] : std::string(1, char(i)));
    }
    Encoder* encoder = bpe_encoder(pairs.data(), pairs.size() / 2, ids.data());
    check(encoder, "an encoder is made");
    for (const int threads : {1, 4}) encode_all(encoder, texts, tokens, threads);
    std::vector<std::thread> users;
    for (int i = 0; i < 3; i++)
        users.emplace_back([&] { encode_all(encoder, texts, tokens, 2); });
    for (std::thread& user : users) user.join();
    bpe_encoder_free(encoder);

    Texts many;  // more different words than an encoder remembers
    for (int i = 0; i < 12; i++) {
        std::string text;
        for (int k = 0; k < 100'000; k++) text += " " + random_word();
        many.add(text);
    }
    encoder = bpe_encoder(pairs.data(), pairs.size() / 2, ids.data());
    encode_all(encoder, many, tokens, 2);
    bpe_encoder_free(encoder);

    const u32 wrong[] = {97, 300, 97, 98};
    check(!bpe_encoder(wrong, 2, ids.data()), "a merge of a later id is refused");
    check(strstr(bpe_error(), "later"), "and the reason is told");
    printf("core.cpp: all right\n");
}
