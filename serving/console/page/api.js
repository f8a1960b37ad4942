// Calls to the gateway. Knows URLs and API keys. Does not know the page.

const KEY = "tidemill-key";
export const key = () => sessionStorage.getItem(KEY) || "";
export const setKey = (value) => sessionStorage.setItem(KEY, value);

function headers() {
  return key() ? { "X-API-Key": key() } : {};
}

export async function call(method, path, body, raw = false) {
  const options = { method, headers: headers() };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = raw ? body : JSON.stringify(body);
  }
  const reply = await fetch(path, options);
  const content = await reply.json().catch(() => ({}));
  if (!reply.ok) throw Object.assign(new Error(errorText(reply.status, content)), { status: reply.status });
  return content;
}

function errorText(status, content) {
  const first = Array.isArray(content.detail) ? content.detail[0] : null;
  return first ? `${first.field}: ${first.msg}` : content.detail || `the gateway answered ${status}`;
}

// Server-sent events through fetch, because EventSource cannot send an API key. Reconnects
// after 1 s. The connection is up from its first bytes on: then the user's row is watched.
export function listen(userId, onMessage, onState) {
  const stop = new AbortController();
  (async () => {
    while (!stop.signal.aborted) {
      try {
        const url = `/v1/stream?user_id=${encodeURIComponent(userId)}`;
        const reply = await fetch(url, { headers: headers(), signal: stop.signal });
        if (!reply.ok) throw new Error(`the stream answered ${reply.status}`);
        await readMessages(reply.body.getReader(), onMessage, () => onState(true));
      } catch (error) {
        if (stop.signal.aborted) return;
      }
      onState(false);
      await new Promise((done) => setTimeout(done, 1000));
    }
  })();
  return () => stop.abort();
}

async function readMessages(reader, onMessage, onFirst) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    onFirst();
    onFirst = () => {};
    rest += decoder.decode(value, { stream: true });
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const kind = /^event: (.*)$/m.exec(block), data = /^data: (.*)$/m.exec(block);
      if (kind && data) onMessage(kind[1], JSON.parse(data[1]));
    }
  }
}
