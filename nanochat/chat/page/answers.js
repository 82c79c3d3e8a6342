"use strict";

// Answers
const answers = new Map(); // Answer being written, by its conversation's id
let leaving = false; // the page is going away

/** What the server is sent: settings, the turns that have an answer, and the last question. */
function requestFor(conversation, message) {
  const before = conversation.messages.slice(0, conversation.messages.indexOf(message));
  const turns = before.filter((one, i) =>
    i === before.length - 1 || (one.parts ?? before[i + 1].parts).length > 0);
  return { messages: apiMessages(conversation.system, turns), stream: true,
    stream_options: { include_usage: true }, ...settings };
}

/** One answer while it is written: asks, takes what streams in, can be stopped. */
class Answer {
  constructor(conversation, message) {
    this.conversation = conversation;
    this.message = message;
    this.aborter = new AbortController();
    this.first = 0; // when the first token came
    this.pieces = 0; // of text: about one a token
    this.saveTimer = null;
    this.waiting = ""; // why nothing comes yet
  }

  async write() {
    const { message } = this;
    try {
      const response = await this.connect();
      for await (const event of eventsOf(response)) this.take(event);
      message.status = message.finish ? "done" : "interrupted";
      if (!message.finish) message.problem = "The answer broke off.";
    } catch (error) {
      this.fail(error);
    }
    if (answers.get(this.conversation.id) === this) answers.delete(this.conversation.id);
    this.waiting = "";
    this.conversation.updated = Date.now();
    this.save();
    drawSoon(message);
    showList();
    showComposer();
    if (!current.messages.includes(message)) return;
    // for screen readers, once: how the answer ended and what it says
    const ends = { stopped: "Stopped. ", interrupted: "Interrupted. ", failed: "No answer. " };
    byId("announcer").textContent = `nanochat: ${ends[message.status] ?? ""}${message.problem} `
      + textOf(message).slice(0, 600);
  }

  stop() {
    this.aborter.abort();
  }

  async connect() {
    const { signal } = this.aborter;
    for (let tries = 0; ; tries += 1) {
      try {
        this.asked = performance.now();
        const body = requestFor(this.conversation, this.message);
        return await ask("v1/chat/completions", { body, signal });
      } catch (error) {
        if (error.status === 401 && (await askForKey(error.message))) continue;
        if (error.status !== 429 || tries >= BUSY_TRIES) throw error;
        for (let left = error.retryAfter; left > 0; left -= 1) {
          this.waiting = `The server is busy. Asking again in ${left} s.`;
          drawSoon(this.message);
          await new Promise((resolve) => {
            setTimeout(resolve, 1000);
            signal.addEventListener("abort", resolve, { once: true });
          });
          signal.throwIfAborted();
        }
        this.waiting = "";
      }
    }
  }

  /** Takes one event of the stream into the message. */
  take(event) {
    if (event.error) {
      throw new ServerError(String(event.error.message ?? "The server failed."), 500);
    }
    const { message } = this;
    const choice = event.choices?.[0];
    const { content, nanochat: extra } = choice?.delta ?? {};
    if (content) this.takeText("text", String(content));
    if (/^python(_output)?$/.test(extra?.type)) this.takeText(extra.type, String(extra.text));
    if (choice?.finish_reason) message.finish = String(choice.finish_reason);
    if (extra?.forgotten_turns) message.forgotten = Number(extra.forgotten_turns);
    if (extra?.timed_out) message.finish = "time";
    const told = timingFrom({ tokens: event.usage?.completion_tokens,
      tokensPerSecond: extra?.tokens_per_second, timeToFirstToken: extra?.time_to_first_token });
    if (told) message.timing = { ...message.timing, ...told };
    drawSoon(message);
    this.saveTimer ??= setTimeout(() => this.save(), SAVE_EVERY);
  }

  takeText(type, text) {
    const { parts } = this.message;
    if (type === "text" && parts.at(-1)?.type === type) parts.at(-1).text += text;
    else parts.push({ type, text }); // a call and its result come whole
    // what this page measures, until the server says it better
    this.first ||= performance.now();
    this.pieces += 1;
    const seconds = (performance.now() - this.first) / 1000;
    this.message.timing = timingFrom({
      tokens: this.pieces,
      timeToFirstToken: (this.first - this.asked) / 1000,
      tokensPerSecond: this.pieces > 4 ? (this.pieces - 1) / seconds : null,
    });
  }

  fail(error) {
    const { message } = this;
    message.status = message.parts.length ? "interrupted" : "failed";
    if (leaving) {
      message.status = "writing"; // the page breaks its connections as it goes
    } else if (this.aborter.signal.aborted) {
      message.status = "stopped";
    } else if (error instanceof ServerError) {
      message.problem = error.message;
    } else if (error instanceof SyntaxError) {
      message.problem = "The server sent what this page cannot read.";
    } else {
      message.problem = "The connection to the server broke.";
      serverAnswers().then((there) => there || serverIsGone());
    }
  }

  save() {
    clearTimeout(this.saveTimer);
    this.saveTimer = null;
    if (conversations.has(this.conversation.id)) saveConversation(this.conversation);
  }
}

/** Puts a question at `index` in place of what follows, and asks for its answer. */
function askQuestion(text, index = current.messages.length) {
  const conversation = current;
  const dropped = conversation.messages.slice(index);
  const message = newAnswer();
  const answer = new Answer(conversation, message);
  answers.get(conversation.id)?.stop();
  conversation.messages = [...conversation.messages.slice(0, index), { role: "user", text }, message];
  conversation.updated = Date.now();
  answers.set(conversation.id, answer);
  saveConversation(conversation);
  showConversation();
  showList();
  answer.write();
  if (!dropped.some((one) => one.parts?.length)) return;
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
