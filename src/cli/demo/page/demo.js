// What an application's page does with headcount. With Clerk, token() is `await Clerk.session.getToken()`, and signing up is Clerk's.
const find = (id) => document.getElementById(id)

let session = null // Who is signed in here: { clerk_id, session_id, token, at }
let visitor = null // Who came before signing in: { id, token }
let row = null // The caller's row, as it was told last
let stream = null // Ends the live updates

const post = (path, body, headers = {}) =>
  fetch(path, { method: "POST", headers: { "Content-Type": "application/json", ...headers }, body: JSON.stringify(body) })

// Session tokens are valid for a minute.
async function token() {
  if (Date.now() - session.at > 45_000) {
    const { clerk_id, session_id } = session
    const answer = await post("/demo/token", { clerk_id, session_id })
    if (!answer.ok) throw signOut("The demo has started anew. Sign up again.")
    session = { ...session, ...(await answer.json()), at: Date.now() }
  }
  return session.token
}

// Asks headcount as the user who is signed in.
async function ask(method, path, body) {
  const headers = { Authorization: `Bearer ${await token()}` }
  const answer = method === "GET" ? await fetch(path, { headers }) : await post(path, body, headers)
  const json = await answer.json()
  if (!answer.ok) throw new Error(json.detail ?? json.code)
  return json
}

async function signUp(name) {
  const answer = await post("/demo/sign-up", { name })
  if (!answer.ok) throw new Error("the demo does not answer")
  const began = performance.now()
  session = { ...(await answer.json()), at: Date.now() }
  // The row exists before this is answered, though no webhook has come.
  show(await ask("GET", "/v1/me"))
  find("arrived").textContent =
    `Your row was there ${Math.round(performance.now() - began)} ms after you signed up. No webhook has come.`
  if (visitor) await claim()
  listen()
}

async function claim() {
  const { anonymous_id, claimed_by } = await ask("POST", "/v1/me/claim", { token: visitor.token })
  visitor = null
  find("whose").textContent = `The cart of ${anonymous_id} is yours now: claimed by ${claimed_by}.`
}

async function add(goods) {
  if (!session && !visitor) {
    const answer = await fetch("/v1/anonymous", { method: "POST" })
    if (!answer.ok) throw new Error("no visitor can begin now: try again in a minute")
    visitor = await answer.json()
    find("whose").textContent = `The cart of a visitor: ${visitor.id}. It stays with you when you sign up.`
  }
  find("cart").append(item(goods))
}

// Live updates. EventSource sends no headers; with Clerk's cookie it would do.
async function listen() {
  stream?.abort()
  const mine = (stream = new AbortController())
  while (!mine.signal.aborted) {
    try {
      const headers = { Authorization: `Bearer ${await token()}` }
      const answer = await fetch("/v1/me/events", { headers, signal: mine.signal })
      if (answer.status === 401) session.at = 0 // It is asked for anew, or the demo has started anew.
      if (!answer.ok) throw new Error(`live updates are refused (${answer.status})`)
      const reader = answer.body.getReader()
      const decoder = new TextDecoder()
      let text = ""
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const events = (text + decoder.decode(part.value, { stream: true })).split("\n\n")
        text = events.pop()
        events.forEach(told)
      }
    } catch (error) {
      if (mine.signal.aborted) return
      trouble(error)
    }
    // Not at once: whatever ended it may last.
    await new Promise((wake) => setTimeout(wake, 2_000 + Math.random() * 3_000))
  }
}

function told(event) {
  const line = (name) => event.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2)
  if (line("event") === "user") show(JSON.parse(line("data")))
  if (line("event") === "deleted") signOut("This user was deleted.")
}

function show(user) {
  const before = row
  row = user
  find("me-title").replaceChildren(...names(user))
  find("tier").textContent = user.subscription_tier
  find("credits").textContent = user.credits_balance.toLocaleString()
  find("email").textContent = user.email ?? "none"
  find("id").textContent = user.id
  find("clerk-id").textContent = user.clerk_id
  find("commands").textContent = [
    "export HEADCOUNT_BILLING=clerk",
    `headcount users grant ${user.clerk_id} premium_lifetime --note "a friend"`,
    `headcount users revoke ${user.clerk_id}`,
    `headcount send user.updated --user ${user.clerk_id} --email new@example.com`,
  ].join("\n")
  for (const id of ["me", "live"]) find(id).hidden = false
  find("sign-up").hidden = true
  const fields = before ? Object.keys(user).filter((name) => differs(before[name], user[name])) : []
  const seen = fields.filter((name) => !["updated_at", "clerk_updated_at", "version"].includes(name))
  for (const name of seen) {
    const entry = item(` ${name}: ${text(before[name])} → ${text(user[name])}`)
    const time = document.createElement("time")
    time.textContent = new Date().toLocaleTimeString()
    entry.prepend(time)
    find("changes").prepend(entry)
  }
}

// Each name stands for itself: whatever direction one sets, the rest keeps its own.
function names(user) {
  const names = [user.first_name, user.last_name].filter(Boolean)
  return (names.length ? names : [user.clerk_id]).flatMap((name) => {
    const own = document.createElement("bdi")
    own.textContent = name
    return [own, " "]
  })
}

const differs = (one, other) => JSON.stringify(one) !== JSON.stringify(other)
const text = (value) => (typeof value === "string" ? value : JSON.stringify(value ?? null))

function item(text) {
  const entry = document.createElement("li")
  entry.textContent = text
  return entry
}

function signOut(why) {
  stream?.abort()
  session = visitor = row = null
  for (const id of ["me", "live"]) find(id).hidden = true
  find("sign-up").hidden = false
  find("cart").replaceChildren()
  find("changes").replaceChildren()
  find("whose").textContent = why
  return new Error("nobody is signed in any more")
}

function trouble(error) {
  find("trouble").textContent = `That did not work: ${error.message}.`
  find("trouble").hidden = false
}

// Does what a button says, once at a time, and tells what went wrong.
function on(element, event, act) {
  element.addEventListener(event, async (happened) => {
    happened.preventDefault()
    const button = happened.submitter ?? happened.target.closest("button")
    if (!button || button.disabled) return
    button.disabled = true
    find("trouble").hidden = true
    try {
      await act(button)
    } catch (error) {
      trouble(error)
    } finally {
      button.disabled = false
    }
  })
}

const plan = async (verb) => {
  const answer = await post("/demo/plan", { clerk_id: session.clerk_id, verb })
  if (answer.status === 404) throw signOut("The demo has started anew. Sign up again.")
  if (!answer.ok) throw new Error("the demo does not answer")
}

on(find("shelf"), "click", (button) => add(button.dataset.goods))
on(find("sign-up"), "submit", () => signUp(find("name").value))
on(find("buy"), "click", () => plan("buy"))
on(find("end"), "click", () => plan("end"))
on(find("sync"), "click", async () => {
  const mine = session
  const { user } = await ask("POST", "/v1/me/sync", {})
  // Whoever has signed out meanwhile stays so.
  if (session?.clerk_id === mine.clerk_id) show(user)
})
on(find("sign-out"), "click", async () => signOut("You have signed out. Put something into the cart."))
