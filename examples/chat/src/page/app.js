// The page: history on one side, what it cost on the other. Texts of people only ever become text nodes.
'use strict';

const by = id => document.getElementById(id);
const numbers = new Intl.NumberFormat('en');
const times = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });

/** An element with a class and children, which are elements or texts. */
function make(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children.filter(child => child !== null));
  return element;
}

/** Asks the chat; what the answer cost goes to the list of requests. */
async function ask(path, options) {
  const begin = performance.now();
  const response = await fetch(path, options);
  const body = await response.json();
  const method = options?.method ?? 'GET';
  const timing = response.headers.get('server-timing') ?? '';
  const part = name => Number(new RegExp(`${name};dur=([\\d.]+)`).exec(timing)?.[1] ?? 0);
  showRequest({
    what: describe(method, path),
    path: `${method} ${path}`,
    trips: Number(response.headers.get('x-larder-trips')),
    loads: Number(response.headers.get('x-larder-loads')),
    flush: body.flush ?? null,
    count: body.messages?.length ?? null,
    cache: part('cache'),
    db: part('db'),
    map: part('map'),
    kept: Number(response.headers.get('x-larder-tier-hits')),
    whole: performance.now() - begin,
  });
  if (!response.ok) throw new Error(body.error ?? response.statusText);
  return body;
}

/** A request in words. */
function describe(method, path) {
  const [route, query] = path.replace('/api/', '').split('?');
  const [kind, id, part] = route.split('/');
  const thing = kind === 'streams' ? 'stream' : 'user';
  if (kind === 'client-errors') return 'reported an error';
  if (id === 'move') return 'moved a topic';
  if (part === 'reactions') return method === 'POST' ? 'added a reaction' : 'took a reaction back';
  if (part === 'subscribers') return `${method === 'PUT' ? 'subscribed to' : 'left'} stream ${id}`;
  if (part === 'subscriptions') return `streams of user ${id}`;
  if (method === 'POST') return 'sent a message';
  if (method === 'PATCH') return `changed ${thing} ${id}`;
  if (route === 'streams') return 'streams';
  if (id) return `${thing} ${id}`;
  const asked = new URLSearchParams(query);
  const side = asked.has('after') ? 'from' : 'before';
  const anchor = asked.get('anchor');
  const where = anchor === 'newest' ? 'newest messages' : `messages ${side} ${anchor}`;
  return asked.has('stream') ? `${where} in #${by('stream').selectedOptions[0].text.slice(1)}` : where;
}

function send(method, path, value) {
  return ask(path, { method, headers: { 'content-type': 'application/json' }, body: JSON.stringify(value) });
}

// --- What the page shows: a stream, a size, and the query that places it. ---

const state = { query: 'anchor=newest', messages: [], keep: null };

function pageSize() { return Number(by('size').value); }

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (wanted.has('size')) by('size').value = wanted.get('size');
  if (!by('size').value) by('size').value = '50';
  by('stream').value = wanted.get('stream') ?? '';
  if (by('stream').selectedIndex < 0) by('stream').value = '';
  const [anchor, side] = [wanted.get('anchor') ?? 'newest', wanted.get('side') ?? 'before'];
  place(anchor, side);
}

function place(anchor, side) {
  state.query = `anchor=${encodeURIComponent(anchor)}&${side === 'after' ? 'after' : 'before'}=${pageSize()}`;
  state.place = { anchor, side };
}

/** Goes to another place, which the back button leaves again. */
function go(anchor, side) {
  place(anchor, side);
  const address = new URLSearchParams({ ...state.place, size: by('size').value });
  if (by('stream').value) address.set('stream', by('stream').value);
  history.pushState(null, '', `#${address}`);
  return show();
}

async function show() {
  const stream = by('stream').value;
  const list = by('messages');
  list.classList.add('waiting');
  try {
    const page = await ask(`/api/messages?${state.query}${stream ? `&stream=${stream}` : ''}`);
    if (page.messages.length === 0 && state.place.side === 'after') {
      // There is nothing newer: the newest page is the end of the way.
      place('newest', 'before');
      await show();
      return;
    }
    state.messages = page.messages;
    complain('trouble', null);
    draw();
  } catch (error) {
    complain('trouble', error);
  } finally {
    list.classList.remove('waiting');
  }
  await refresh();
}

function complain(id, error) {
  by(id).hidden = !error;
  by(id).textContent = error ? error.message : '';
}

function draw() {
  const list = by('messages');
  let topic = null;
  const rows = [];
  for (const message of state.messages) {
    const here = `${message.stream_id} ${message.subject}`;
    if (here !== topic) {
      topic = here;
      const move = make('button', 'act', 'move');
      move.type = 'button';
      move.title = 'Move all messages of this topic, by one statement';
      move.addEventListener('click', () => openTopic(message));
      rows.push(make('li', 'topic', make('b', '', `#${message.stream ?? message.stream_id}`), ` › ${message.subject}`, move));
    }
    rows.push(row(message));
  }
  if (rows.length === 0) rows.push(make('li', 'nothing', 'No messages here.'));
  list.replaceChildren(...rows);
  // Heights of rows out of sight are guesses, so the end moves once its rows are laid out.
  const { keep } = state;
  state.keep = null;
  const scroll = () => { list.scrollTop = keep ?? (state.place.side === 'after' ? 0 : list.scrollHeight); };
  scroll();
  requestAnimationFrame(() => { scroll(); requestAnimationFrame(scroll); });
  by('older').disabled = state.messages.length === 0;
  by('newer').disabled = state.messages.length === 0;
  by('rename-open').disabled = !by('stream').value;
  drawSenders();
}

function row(message) {
  const name = message.sender_full_name ?? `user ${message.sender_id}`;
  const face = make('span', 'face', name.match(/\p{L}+/gu)?.slice(0, 2).map(word => [...word][0]).join('') ?? '?');
  face.style.setProperty('--hue', String(message.sender_id * 47 % 360));
  face.setAttribute('aria-hidden', 'true');
  const person = make('button', 'name', name);
  person.type = 'button';
  person.title = `Change this user: version ${message.name_versions[message.sender_id]}`;
  person.addEventListener('click', () => openPerson(message.sender_id));
  const when = make('span', 'when', times.format(new Date(message.timestamp * 1000)));
  when.title = `version ${message.version} of message ${message.id}`;
  const edited = message.last_edit_timestamp === null ? null : make('span', 'when', 'edited');
  const nameOf = id => message.names[id] ?? `user ${id}`;
  const [edit] = message.edit_history;
  if (edited && edit) edited.title = `${nameOf(edit.user_id)} changed: ${edit.prev_content ?? edit.prev_topic ?? ''}`;
  const fans = Map.groupBy(message.reactions, emojiOf);
  const reactions = make('div', 'reactions', ...[...fans].map(([emoji, all]) => {
    const element = make('button', '', all.length > 1 ? `${emoji} ${all.length}` : emoji);
    element.type = 'button';
    element.title = all.map(reaction => nameOf(reaction.user_id)).join(', ');
    element.addEventListener('click', () => toggle(message, all[0]));
    return element;
  }));
  const like = make('button', 'like', '👍');
  like.type = 'button';
  like.title = 'React as whoever messages are sent as';
  like.addEventListener('click', () => toggle(message, { emoji_name: '+1', emoji_code: '1f44d' }));
  return make('li', 'message', face, make('div', '',
    make('div', 'by', person, when, edited, like),
    make('div', 'text', ...marked(message.content)),
    fans.size ? reactions : null));
}

function emojiOf(reaction) {
  const points = reaction.emoji_code.split('-').map(code => parseInt(code, 16));
  const legal = reaction.reaction_type === 'unicode_emoji' && points.every(point => point <= 0x10ffff);
  return legal ? String.fromCodePoint(...points) : `:${reaction.emoji_name}:`;
}

/** A message's text with its code blocks, inline code and mentions as elements. */
function marked(text) {
  const parts = [];
  const pattern = /```[^\n]*\n([^]*?)(?:\n?```|$)\n?|`([^`\n]+)`|@\*\*([^*\n]+)\*\*|\*\*([^*\n]+)\*\*/g;
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    parts.push(text.slice(end, match.index));
    end = match.index + match[0].length;
    const [, block, code, mention, bold] = match;
    if (block !== undefined) parts.push(make('pre', '', make('code', '', block)));
    else if (code !== undefined) parts.push(make('code', '', code));
    else if (mention !== undefined) parts.push(make('span', 'mention', `@${mention}`));
    else parts.push(make('strong', '', bold));
  }
  return [...parts, text.slice(end)];
}

// --- Writing: what is sent or changed is in the next read. ---

function drawSenders() {
  const select = by('sender');
  const before = select.value;
  const people = new Map(state.messages.map(message => [message.sender_id, message.sender_full_name]));
  const sorted = [...people].sort((a, b) => String(a[1]).localeCompare(String(b[1])));
  select.replaceChildren(...sorted.map(([id, name]) => {
    const option = make('option', '', name ?? `user ${id}`);
    option.value = id;
    return option;
  }));
  if (people.has(Number(before))) select.value = before;
  const last = state.messages.at(-1);
  if (last && !by('content').value) by('subject').value = last.subject;
}

by('composer').addEventListener('submit', async event => {
  event.preventDefault();
  const stream = Number(by('stream').value || state.messages.at(-1)?.stream_id);
  try {
    await send('POST', '/api/messages', {
      stream_id: stream,
      sender_id: Number(by('sender').value),
      subject: by('subject').value,
      content: by('content').value,
    });
    by('content').value = '';
    await go('newest', 'before');
  } catch (error) {
    complain('trouble', error);
  }
});

/** Adds a reaction of the person that messages are sent as, or takes it back; the answer is the message as it is now. */
async function toggle(message, { emoji_name, emoji_code }) {
  const user_id = Number(by('sender').value);
  const path = `/api/messages/${message.id}/reactions`;
  const isMine = each => each.user_id === user_id && each.emoji_code === emoji_code;
  try {
    if (message.reactions.some(isMine)) {
      await ask(`${path}?user_id=${user_id}&emoji_code=${emoji_code}`, { method: 'DELETE' });
    } else {
      await send('POST', path, { user_id, emoji_name, emoji_code });
    }
    state.keep = by('messages').scrollTop;
    await show();
  } catch (error) {
    complain('trouble', error);
  }
}

let topic = null;

function openTopic({ stream_id, subject }) {
  topic = { stream_id, subject };
  by('topic-stream').replaceChildren(...[...by('stream').options].slice(1).map(option => option.cloneNode(true)));
  by('topic-stream').value = stream_id;
  by('topic-subject').value = subject;
  complain('topic-trouble', null);
  by('topic').showModal();
}

by('topic-form').addEventListener('submit', async event => {
  event.preventDefault();
  try {
    const to = { stream_id: Number(by('topic-stream').value), subject: by('topic-subject').value };
    await send('POST', '/api/messages/move', { from: topic, to });
    by('topic').close();
    await show();
  } catch (error) {
    complain('topic-trouble', error);
  }
});

let renamed = null;

async function openStream() {
  try {
    renamed = await ask(`/api/streams/${by('stream').value}`);
  } catch (error) {
    complain('trouble', error);
    return;
  }
  by('rename-name').value = renamed.name;
  by('rename-description').value = renamed.description;
  complain('rename-trouble', null);
  by('rename').showModal();
}

by('rename-form').addEventListener('submit', async event => {
  event.preventDefault();
  try {
    const change = { name: by('rename-name').value, description: by('rename-description').value };
    await send('PATCH', `/api/streams/${renamed.id}`, change);
    by('rename').close();
    await readStreams();
    await show();
  } catch (error) {
    complain('rename-trouble', error);
  }
});

for (const button of document.querySelectorAll('.cancel')) {
  button.addEventListener('click', () => button.closest('dialog').close());
}

let person = null;

async function openPerson(id) {
  try {
    person = await ask(`/api/users/${id}`);
    const { subscriptions } = await ask(`/api/users/${id}/subscriptions`);
    drawSubscriptions(id, new Set(subscriptions.map(each => each.stream_id)));
  } catch (error) {
    complain('trouble', error);
    return;
  }
  by('person-name').value = person.full_name;
  by('person-email').value = person.email;
  by('person-active').checked = person.is_active;
  complain('person-trouble', null);
  by('person').showModal();
}

/** All streams, those ticked that the person reads; a tick is a write of its own. */
function drawSubscriptions(id, reads) {
  by('person-streams').replaceChildren(...[...by('stream').options].slice(1).map(({ value, text }) => {
    const tick = make('input', '');
    tick.type = 'checkbox';
    tick.checked = reads.has(Number(value));
    tick.addEventListener('change', async () => {
      try {
        await ask(`/api/streams/${value}/subscribers/${id}`, { method: tick.checked ? 'PUT' : 'DELETE' });
        await refresh();
      } catch (error) {
        tick.checked = !tick.checked;
        complain('person-trouble', error);
      }
    });
    return make('label', 'check', tick, ` ${text}`);
  }));
}

by('person-form').addEventListener('submit', async event => {
  event.preventDefault();
  try {
    await send('PATCH', `/api/users/${person.id}`, {
      full_name: by('person-name').value,
      email: by('person-email').value,
      is_active: by('person-active').checked,
    });
    by('person').close();
    await show();
  } catch (error) {
    complain('person-trouble', error);
  }
});

// --- What it costs. ---

const requests = [];

function showRequest(request) {
  requests.unshift(request);
  requests.length = Math.min(requests.length, 6);
  const whole = ({ cache, db, map }) => cache + db + map;
  const longest = Math.max(...requests.map(whole), 1);
  by('requests').replaceChildren(...requests.map(each => {
    const bar = make('div', 'bar', ...['cache', 'db', 'map'].filter(kind => each[kind]).map(kind => {
      const piece = make('i', kind);
      piece.style.width = `${90 * each[kind] / longest}%`;
      return piece;
    }));
    const count = each.count === null ? '' : `${numbers.format(each.count)} `;
    const what = make('span', 'what', count + each.what);
    what.title = each.path;
    const loads = each.loads === 0 ? make('span', 'warm', 'none loaded') : make('b', '', `${numbers.format(each.loads)} loaded`);
    const outcome = each.flush ? make('b', '', `flush ${each.flush}`) : loads;
    const trips = `${each.trips} ${each.trips === 1 ? 'trip' : 'trips'}`;
    const took = ` · ${whole(each).toFixed(1)} ms`;
    const cost = make('span', 'cost', outcome, ` · ${trips}${took}`);
    cost.title = `${numbers.format(each.kept)} keys that the request had already`;
    return make('li', '', what, cost, bar);
  }));
}

const seen = new Map();

function cell(key, text) {
  const element = make('td', seen.has(key) && seen.get(key) !== text ? 'changed' : '', text);
  seen.set(key, text);
  return element;
}

function micros(value, count) {
  if (count === 0) return '–';
  if (value < 1000) return `${value.toFixed(0)} µs`;
  return value < 1e6 ? `${(value / 1e3).toFixed(value < 1e5 ? 1 : 0)} ms` : `${(value / 1e6).toFixed(1)} s`;
}

function bytes(value) {
  const steps = ['B', 'KiB', 'MiB', 'GiB'];
  let step = 0;
  while (value >= 1024 && step + 1 < steps.length) { value /= 1024; step += 1; }
  return `${value.toFixed(step && value < 100 ? 1 : 0)} ${steps[step]}`;
}

function drawAccessors(accessors) {
  by('accessors').replaceChildren(...accessors.map(each => {
    const { name } = each;
    const answered = each.hits + each.absent;
    const all = answered + each.misses;
    const kept = each.tier_hits + each.tier_misses > 0;
    const fill = make('i', '');
    fill.style.width = `${all ? 100 * answered / all : 0}%`;
    const rate = make('span', 'rate', fill);
    rate.title = all ? `${(100 * answered / all).toFixed(1)} % of keys came from the store` : 'not asked yet';
    const tail = each.read_latency;
    return make('tr', '',
      make('td', '', name.replaceAll('_', ' '), rate),
      cell(`${name} kept`, kept ? numbers.format(each.tier_hits) : '–'),
      cell(`${name} hits`, numbers.format(answered)),
      cell(`${name} misses`, numbers.format(each.misses)),
      cell(`${name} loads`, numbers.format(each.loads)),
      cell(`${name} trips`, numbers.format(each.trips)),
      cell(`${name} p50`, micros(tail.p50_us, tail.count)),
      cell(`${name} p99`, micros(tail.p99_us, tail.count)));
  }));
}

function drawTiers({ budget, request, deploy }) {
  by('budget').textContent = `of ${bytes(budget)} together`;
  by('tiers').replaceChildren(...Object.entries({ request, deploy }).map(([name, tier]) => make('tr', '',
    make('td', '', name),
    cell(`tier ${name} entries`, numbers.format(tier.entries)),
    cell(`tier ${name} bytes`, bytes(tier.bytes)),
    cell(`tier ${name} hits`, numbers.format(tier.hits)),
    cell(`tier ${name} misses`, numbers.format(tier.misses)))));
}

function drawWrites({ writes, outbox, generations, uncached }) {
  const facts = [
    ['commits', writes.commits],
    ['fresh', writes.fresh],
    ['pending', writes.pending],
    ['waiting', writes.waiting],
    ['held', writes.held_keys],
    ['outbox', outbox.rows],
  ];
  const oldest = outbox.oldest_s === null ? '–' : `${outbox.oldest_s.toFixed(1)} s`;
  by('writes').replaceChildren(make('tr', '',
    ...facts.map(([name, count]) => cell(`writes ${name}`, count === null ? '–' : numbers.format(count))),
    cell('writes oldest', oldest)));
  const held = writes.held_servers.length + writes.held_accessors.length + Object.keys(uncached).length;
  by('generations').replaceChildren(...generations.map(({ id, version, holder, left_s, is_own }) => make('li', '',
    make('span', 'state'), is_own ? `${id} (this)` : id,
    make('div', 'detail', `${version} · registered by ${holder.split(' (')[0]} for ${left_s} s`))));
  const names = [...Object.keys(uncached), ...writes.held_accessors];
  by('past').hidden = held === 0;
  by('past').textContent = names.length ? `Read past the store: ${names.join(', ')}` : 'A server was away and is not read yet.';
}

function drawServers(stats) {
  const known = new Map(stats.backend.servers.map(server => [server.server, server]));
  by('servers').replaceChildren(...stats.servers.map(({ server, up, version, latency_us, error }) => {
    const counted = known.get(server) ?? {};
    const facts = [];
    if (up) facts.push(version);
    if (up && latency_us > 0) facts.push(`answers in ${micros(latency_us, 1)}`);
    if (!up) facts.push(error);
    if (counted.entries != null) facts.push(`${numbers.format(counted.entries)} entries`);
    if (counted.stored_bytes != null) facts.push(bytes(counted.stored_bytes));
    if (counted.bytes_in) facts.push(`${bytes(counted.bytes_in)} received`, `${bytes(counted.bytes_out)} sent`);
    if (counted.evictions) facts.push(`${numbers.format(counted.evictions)} evicted`);
    return make('li', up ? '' : 'down', make('span', 'state'), server,
      make('div', 'detail', facts.join(' · ')));
  }));
}

async function refresh() {
  try {
    const stats = await (await fetch('/stats')).json();
    by('store').textContent = `${stats.store} · up ${uptime(stats.uptime_s)}`;
    drawAccessors(stats.accessors);
    drawTiers(stats.tiers);
    drawWrites(stats);
    drawServers(stats);
  } catch {
    by('store').textContent = 'the chat does not answer';
  }
}

function uptime(seconds) {
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7200 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h`;
}

/** Looks once a second, one look after the other, and only while somebody looks too. */
async function watch() {
  for (;;) {
    await new Promise(resolve => { setTimeout(resolve, 1000); });
    if (!document.hidden) await refresh();
  }
}

// --- What went wrong: the chat says where in the sources it was, since what runs here was made small. ---

async function report(error) {
  const stack = String(error?.stack ?? error).split('\n').slice(0, 50).join('\n');
  try {
    const { message, frames } = await send('POST', '/api/client-errors', { stack });
    by('error').replaceChildren(make('b', '', message || String(error)), ...frames.map(frame => {
      const { source, line, column } = frame;
      const place = source ? `${frame.function || '(anonymous)'} at ${source}:${line}:${column}` : frame.raw;
      const element = make('li', source ? '' : 'foreign', place);
      element.title = frame.code ?? '';
      return element;
    }));
  } catch (trouble) {
    // Nobody is there to be told, and reporting this too would never end.
    console.warn(trouble);
  }
}

addEventListener('error', event => report(event.error));
addEventListener('unhandledrejection', event => report(event.reason));
by('fail').addEventListener('click', () => part(7)(1, 3));

// --- Start. ---

by('older').addEventListener('click', () => go(state.messages[0].id, 'before'));
by('newer').addEventListener('click', () => go(state.messages.at(-1).id + 1, 'after'));
by('oldest').addEventListener('click', () => go(0, 'after'));
by('newest').addEventListener('click', () => go('newest', 'before'));
by('again').addEventListener('click', show);
by('stream').addEventListener('change', () => go('newest', 'before'));
by('size').addEventListener('change', () => go(state.place.anchor, state.place.side));
addEventListener('popstate', () => { readAddress(); show(); });

by('rename-open').addEventListener('click', openStream);

async function readStreams() {
  const { streams } = await ask('/api/streams');
  const chosen = by('stream').value;
  const [all] = by('stream').options;
  by('stream').replaceChildren(all, ...streams.map(({ id, name }) => {
    const option = make('option', '', `#${name}`);
    option.value = id;
    return option;
  }));
  by('stream').value = chosen;
}

(async () => {
  try {
    await readStreams();
  } catch (error) {
    complain('trouble', error);
  }
  readAddress();
  await show();
  watch();
})();
