"""CamemBERT, which is XLM-RoBERTa under another name."""

from dataclasses import replace

from families import xlm_roberta

FAMILY = replace(xlm_roberta.FAMILY, config="CamembertConfig", model="CamembertModel")
