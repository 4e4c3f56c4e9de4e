"""Names of pre-tokenizers by what a tokenizer makes of one text, as llama.cpp's converter finds
them: the SHA-256 of the ids in Python's spelling of a list, its first 16 digits.
"""

TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis "
    "concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 "
    "កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure "
    "I'll make it, 'D you like some tea? We'Ve a'lL"
)
NAMES = {
    "0ef9807a4087ebef": "llama-bpe",
    "c136ed14d01c2745": "smaug-bpe",
    "a8594e3edff7c29c": "dbrx",
    "d4540891389ea895": "qwen2",
    "e636dc30a262dcc0": "qwen2",
    "b3f499bb4255f8ca": "deepseek-r1-qwen",
    "855059429035d75a": "smollm",
    "63b97e4253352e6f": "tekken",
    "0e9433cbbb161f89": "pixtral",
    "ccc2ef013c104be7": "gpt-4o",
    "6221ad2852e85ce9": "refact",
    "a1336059768a55c9": "glm4",
    "9ca2dd618e8afaf0": "glm4",
    "cdf5f35325780597": "glm4",
    "b6e8e1518dc4305b": "chatglm-bpe",
    "81d72c7348a9f0eb": "chatglm-bpe",
    "32d85c31273f8019": "stablelm2",
    "35d91631860c815f": "starcoder",
    "3ce83efda5659b07": "gpt-2",
    "fcace8b9cac38ce8": "phi-2",
    "b6dc8df998e1cfbd": "olmo",
    "9d032fcbd5501f4a": "falcon3",
    "8aeee3860c56296a": "falcon",
    "049ecf7629871e30": "deepseek-llm",
    "347715f544604f91": "deepseek-coder",
    "877081d19cf6996e": "deepseek-v3",
    "9c2227e4dd922002": "command-r",
    "4e2b24cc4770243d": "exaone",
    "2085e1638f6c377a": "exaone4",
    "d5f1dd6f980fec56": "seed-coder",
    "d4c8f286ea6b520b": "megrez",
    "1994ffd01900cfb3": "trillion",
    "d30d75d9059f1aa2": "qwen35",
    "1444df51289cfa80": "qwen35",
    "7e57df22b1fe23a7": "hunyuan",
    "bba3b3366b646dbd": "hunyuan-dense",
}
