// A guest with a JavaScript engine inside: the large component of the compile and cold start tests.

addEventListener('fetch', (event) => event.respondWith(hello(event.request)));

function hello(request) {
  const headers = { 'x-method': request.method, 'x-path': new URL(request.url).pathname };
  return new Response('hello from JavaScript\n', { headers });
}
