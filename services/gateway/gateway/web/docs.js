// Renders the OpenAPI document. Every text goes in as text, never as markup.

const place = (id) => document.getElementById(id);

/** Make an element; properties are set, children are nodes or texts. */
function make(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Text in which `words like these` are code. */
function prose(text) {
  const parts = (text ?? "").split("`");
  return parts.map((part, number) => (number % 2 ? make("code", {}, part) : part));
}

/** A schema in a few words, with links to the shapes it names. */
function type(schema) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    return [make("a", { href: `#shape-${name}` }, name)];
  }
  if (schema.anyOf) return schema.anyOf.flatMap((each, number) => (number ? [" or ", ...type(each)] : type(each)));
  if (schema.enum) return [schema.enum.map((each) => JSON.stringify(each)).join(", ")];
  if (schema.type === "array") return ["list of ", ...type(schema.items ?? {})];
  return [schema.format ?? schema.type ?? "anything"];
}

/** What a schema asks of a value besides its type. */
function limits(schema) {
  const inner = schema.anyOf?.find((each) => each.type !== "null") ?? schema;
  const words = [];
  if (inner.minimum !== undefined || inner.maximum !== undefined) words.push(`${inner.minimum ?? "…"} to ${inner.maximum ?? "…"}`);
  if (inner.maxLength !== undefined) words.push(`at most ${inner.maxLength} characters`);
  if (inner.maxItems !== undefined) words.push(`at most ${inner.maxItems}`);
  if (inner.pattern && inner.maxLength === undefined) words.push("`" + inner.pattern + "`");
  if (schema.default !== undefined && schema.default !== null) words.push(`default ${JSON.stringify(schema.default)}`);
  return [inner.description, words.join(", ")].filter(Boolean).join(" ");
}

/** A table of [name, must it be there, schema, note]. */
function table(rows) {
  const line = ([name, must, schema, note]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("code", {}, name), must ? make("span", { className: "must", title: "required" }, " *") : null),
      make("td", {}, ...type(schema)),
      make("td", { className: "note" }, ...prose([note, limits(schema)].filter(Boolean).join(" "))),
    );
  return make("div", { className: "wide" }, make("table", {}, make("tbody", {}, ...rows.map(line))));
}

function parameters(operation) {
  const rows = (operation.parameters ?? []).map((each) => [each.name, each.required, each.schema, `${each.in}. ${each.description ?? ""}`]);
  return rows.length ? [make("h3", {}, "Parameters"), table(rows)] : [];
}

function body(operation) {
  if (!operation.requestBody) return [];
  const rows = Object.entries(operation.requestBody.content).map(([kind, { schema }]) => [kind, false, schema, ""]);
  return [make("h3", {}, operation.requestBody.required ? "Body" : "Body, may be left out"), table(rows)];
}

function answers(operation) {
  const rows = Object.entries(operation.responses).map(([status, answer]) => {
    const [kind, content] = Object.entries(answer.content)[0];
    return [status, false, kind === "application/json" ? content.schema : { type: kind }, answer.description];
  });
  return [make("h3", {}, "Answers"), table(rows)];
}

function operationNode(path, method, operation) {
  const head = make(
    "summary",
    {},
    make("span", { className: `method ${method}` }, method.toUpperCase()),
    make("code", {}, path),
    make("span", { className: "what" }, ...prose(operation.summary)),
  );
  const node = make(
    "details",
    { id: operation.operationId },
    head,
    make("div", {}, ...parameters(operation), ...body(operation), ...answers(operation)),
  );
  node.dataset.words = `${method} ${path} ${operation.summary}`.toLowerCase();
  return node;
}

function shapeNode(name, schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([key, each]) => [key, schema.required?.includes(key), each, ""]);
  return make(
    "details",
    { id: `shape-${name}` },
    make("summary", {}, make("code", {}, name), make("span", { className: "what" }, ...prose(schema.description))),
    make("div", {}, table(rows)),
  );
}

function render(api) {
  place("version").textContent = api.info.version;
  place("about").replaceChildren(...prose(api.info.description));
  const server = api.servers[0].url;
  for (const { name } of api.tags) {
    const nodes = Object.entries(api.paths).flatMap(([path, methods]) =>
      Object.entries(methods)
        .filter(([, operation]) => operation.tags.includes(name))
        .map(([method, operation]) => operationNode(server + path, method, operation)),
    );
    place("operations").append(make("section", {}, make("h2", { id: `tag-${name}` }, name), ...nodes));
    place("tags").append(make("a", { href: `#tag-${name}` }, name));
  }
  place("schemas").append(...Object.entries(api.components.schemas).map(([name, schema]) => shapeNode(name, schema)));
  place("schemas").hidden = false;
  place("tags").append(make("a", { href: "#schemas" }, "shapes"));
}

/** Open what the address points at. */
function reveal() {
  const target = place(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
  target?.scrollIntoView();
}

function find() {
  const words = place("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const section of place("operations").children) {
    const nodes = [...section.querySelectorAll("details")];
    for (const node of nodes) node.hidden = !words.every((word) => node.dataset.words.includes(word));
    section.hidden = nodes.every((node) => node.hidden);
  }
}

try {
  const response = await fetch(place("source").href);
  if (!response.ok) throw new Error(`status ${response.status}`);
  render(await response.json());
  place("find").addEventListener("input", find);
  addEventListener("hashchange", reveal);
  reveal();
} catch (error) {
  place("about").textContent = `The description could not be loaded: ${error.message}`;
}
