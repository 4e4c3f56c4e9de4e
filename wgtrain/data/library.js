// `@huggingface/tokenizers` (its CommonJS text) behind the call that `library.py` needs: the value
// is text -> tokenizer.json -> list of texts -> list of lists of ids.
(text) => {
  const module = { exports: {} };
  new Function("module", "exports", text)(module, module.exports);
  const { Tokenizer } = module.exports;
  return (json) => {
    const tokenizer = new Tokenizer(JSON.parse(json), {});
    return (texts) => texts.map((one) => tokenizer.encode(one, { add_special_tokens: false }).ids);
  };
};
