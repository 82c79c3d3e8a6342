"use strict";

// Answers
const answers = new Map(); // Answer being written, by its conversation's id
let leaving = false; // the page is going away

/** What the server is sent: settings, the turns that have an answer, and the last question. */
function requestFor(conversation, message) {
  const before = conversation.messages.slice(0, conversation.messages.indexOf(message));
  const isKept = (one, i) =>
    i === before.length - 1 || (one.parts ?? before[i + 1].parts).length > 0;
  const turns = before.filter(isKept);
  const system = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  return {
    messages: [...system, ...turns.map((one) => ({ role: one.role, content: contentOf(one) }))],
    stream: true, stream_options: { include_usage: true },
    temperature: settings.temperature, top_k: settings.topK, max_tokens: settings.maxTokens,
  };
}

/** Seconds that pass, told each second; ends early when `signal` aborts. */
async function countdown(seconds, signal, tell) {
  for (let left = seconds; left > 0; left -= 1) {
    tell(left);
    signal.throwIfAborted();
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, 1000);
      signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
    });
  }
  signal.throwIfAborted();
}

/** One answer while it is written: asks, takes what streams in, can be stopped. */
class Answer {
  constructor(conversation, message) {
    this.conversation = conversation;
    this.message = message;
    this.aborter = new AbortController();
    this.asked = performance.now();
    this.first = 0; // when the first token came
    this.pieces = 0; // of text: about one a token
    this.saveTimer = null;
    this.waiting = ""; // why nothing comes yet
    this.calls = null; // the index of the last tool call
  }

  async write() {
    const { message } = this;
    try {
      const response = await this.connect();
      for await (const event of eventsOf(response)) this.take(event);
      message.status = message.finish ? "done" : "interrupted";
      if (!message.finish) message.problem = "The answer broke off.";
    } catch (error) {
      this.endWith(error);
    }
    this.finish();
  }

  stop() {
    this.aborter.abort();
  }

  async connect() {
    for (let tries = 0; ; tries += 1) {
      try {
        const body = requestFor(this.conversation, this.message);
        this.asked = performance.now();
        return await ask("/v1/chat/completions", { body, signal: this.aborter.signal });
      } catch (error) {
        if (error.status === 401 && (await askForKey(error.message))) continue;
        if (error.status !== 429 || tries >= BUSY_TRIES) throw error;
        await countdown(error.retryAfter, this.aborter.signal, (left) => {
          this.waiting = `The server is busy. Asking again in ${left} s.`;
          drawSoon(this.message);
        });
        this.waiting = "";
      }
    }
  }

  /** Takes one event of the stream into the message. */
  take(event) {
    if (event.error) {
      throw new ServerError(String(event.error.message ?? "The server failed."), 500);
    }
    const choice = event.choices?.[0];
    const delta = choice?.delta ?? {};
    if (typeof delta.content === "string" && delta.content) this.takeText("text", delta.content);
    for (const call of delta.tool_calls ?? []) this.takeCall(call);
    const extra = delta.nanochat ?? choice?.nanochat ?? event.nanochat;
    if (extra?.type === "python_output") this.takeText("python_output", String(extra.text));
    if (choice?.finish_reason) this.message.finish = String(choice.finish_reason);
    if (extra?.forgotten_turns) this.message.forgotten = Number(extra.forgotten_turns);
    if (extra?.timed_out) this.message.finish = "time";
    if (extra?.type === "timing" || event.usage) this.takeTiming(extra ?? {}, event.usage);
    drawSoon(this.message);
    this.saveTimer ??= setTimeout(() => this.save(), SAVE_EVERY);
  }

  takeText(type, text) {
    if (!this.first) this.first = performance.now();
    this.pieces += 1;
    const { parts } = this.message;
    if (parts.at(-1)?.type === type) parts.at(-1).text += text;
    else parts.push({ type, text });
    this.measure();
  }

  takeCall(call) {
    const { parts } = this.message;
    // a call may come in pieces with the same index, and another call may follow it at once
    const another = call.index !== this.calls;
    if (another) parts.push({ type: "python", text: "" });
    this.calls = call.index;
    this.takeText("python", String(call.function?.arguments ?? ""));
  }

  /** What this page measures, until the server says it better. */
  measure() {
    const seconds = (performance.now() - this.first) / 1000;
    this.message.timing = {
      tokens: this.pieces,
      timeToFirstToken: (this.first - this.asked) / 1000,
      ...(this.pieces > 4 && seconds > 0 ? { tokensPerSecond: (this.pieces - 1) / seconds } : {}),
    };
  }

  takeTiming(told, usage) {
    const timing = timingFrom({ tokens: usage?.completion_tokens,
      tokensPerSecond: told.tokens_per_second, timeToFirstToken: told.time_to_first_token });
    this.message.timing = { ...this.message.timing, ...timing };
  }

  endWith(error) {
    const { message } = this;
    message.status = message.parts.length ? "interrupted" : "failed";
    if (leaving) {
      message.status = "writing"; // the page breaks its connections as it goes
    } else if (this.aborter.signal.aborted) {
      message.status = "stopped";
    } else if (error instanceof ServerError) {
      message.problem = error.message;
    } else {
      message.problem = error instanceof SyntaxError ? "The server sent what this page cannot read."
        : "The connection to the server broke.";
      if (!(error instanceof SyntaxError)) serverAnswers().then((there) => there || serverIsGone());
    }
  }

  save() {
    clearTimeout(this.saveTimer);
    this.saveTimer = null;
    if (conversations.has(this.conversation.id)) saveConversation(this.conversation);
  }

  finish() {
    if (answers.get(this.conversation.id) === this) answers.delete(this.conversation.id);
    this.waiting = "";
    this.conversation.updated = Date.now();
    this.save();
    drawSoon(this.message);
    showList();
    showComposer();
    announce(this.message);
  }
}

/** Asks for the answer to the conversation's last question. */
function beginAnswer(conversation) {
  const message = newAnswer();
  conversation.messages.push(message);
  conversation.updated = Date.now();
  const answer = new Answer(conversation, message);
  answers.set(conversation.id, answer);
  saveConversation(conversation);
  if (conversation === current) showConversation();
  showList();
  answer.write();
}

/** Puts a question at `index` in place of what follows, and asks for its answer. */
function askQuestion(text, index = current.messages.length) {
  const conversation = current;
  const dropped = conversation.messages.slice(index);
  answers.get(conversation.id)?.stop();
  conversation.messages = [...conversation.messages.slice(0, index), { role: "user", text }];
  beginAnswer(conversation);
  if (!dropped.some((message) => message.parts?.length)) return;
  const what = dropped.length > 2 ? "The turns after it are gone."
    : "The earlier answer is replaced.";
  offerUndo(what, conversation, (one) => {
    one.messages = [...one.messages.slice(0, index), ...dropped];
  });
}

/** Answers the question before the answer `message` once more. */
function answerAgain(message) {
  const index = current.messages.indexOf(message);
  if (index > 0) askQuestion(current.messages[index - 1].text, index - 1);
}

function stopAnswer() {
  answers.get(current.id)?.stop();
}

/** Says for screen readers, once, how an answer ended and what it says. */
function announce(message) {
  if (!current.messages.includes(message)) return;
  const ends = { stopped: "Stopped. ", interrupted: "Interrupted. ", failed: "No answer. " };
  byId("announcer").textContent = `nanochat: ${ends[message.status] ?? ""}${message.problem} `
    + textOf(message).slice(0, 600);
}
