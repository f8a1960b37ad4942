// Calls to the gateway. Knows addresses and keys; does not know the page.

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
  const told = await reply.json().catch(() => ({}));
  if (!reply.ok) throw Object.assign(new Error(words(reply.status, told)), { status: reply.status });
  return told;
}

function words(status, told) {
  const first = Array.isArray(told.detail) ? told.detail[0] : null;
  return first ? `${first.field}: ${first.msg}` : told.detail || `the gateway answered ${status}`;
}

// Server-sent events by fetch, because EventSource cannot carry a key. Connects again by itself.
export function listen(userId, take, onState) {
  const stop = new AbortController();
  (async () => {
    while (!stop.signal.aborted) {
      try {
        const address = `/v1/stream?user_id=${encodeURIComponent(userId)}`;
        const reply = await fetch(address, { headers: headers(), signal: stop.signal });
        if (!reply.ok) throw new Error(`the stream answered ${reply.status}`);
        onState(true);
        await read(reply.body.getReader(), take);
      } catch (error) {
        if (stop.signal.aborted) return;
      }
      onState(false);
      await new Promise((done) => setTimeout(done, 1000));
    }
  })();
  return () => stop.abort();
}

async function read(reader, take) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const kind = /^event: (.*)$/m.exec(block), data = /^data: (.*)$/m.exec(block);
      if (kind && data) take(kind[1], JSON.parse(data[1]));
    }
  }
}
