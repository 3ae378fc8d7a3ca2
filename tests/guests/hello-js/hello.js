// A guest with a JavaScript engine inside: the large component of the compile and cold start tests. Its engine gives resources of
// the host back when it collects garbage, not when it has used them.

addEventListener('fetch', (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const url = new URL(request.url);
  const times = Number(url.searchParams.get('n') ?? 0);
  switch (url.pathname) {
    case '/pieces': return new Response(`${await pieces(request.body)}\n`);
    case '/calls': return new Response(`${await calls(times, url.searchParams.get('url'))} calls\n`);
    case '/timers': return new Response(`${await timers(times)} timers\n`);
    default: return hello(request, url);
  }
}

function hello(request, url) {
  const headers = { 'x-method': request.method, 'x-path': url.pathname };
  return new Response('hello from JavaScript\n', { headers });
}

async function pieces(body) {
  let bytes = 0;
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return `${bytes} bytes`;
    bytes += value.byteLength;
  }
}

async function calls(times, url) {
  let done = 0;
  for (let i = 0; i < times; i += 1) {
    await (await fetch(url)).text();
    done += 1;
  }
  return done;
}

async function timers(times) {
  const timer = () => new Promise((resolve) => { setTimeout(resolve, 50); });
  return (await Promise.all(Array.from({ length: times }, timer))).length;
}
