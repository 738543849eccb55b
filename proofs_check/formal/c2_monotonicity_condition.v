(* C2, the sandwich and the monotonicity condition: for any scores, targets, K and biases p (before) and q (after),

     <A(p) - L, q - p>  <=  D(q) - D(p)  <=  <A(q) - L, q - p>,

   so D does not rise if and only if the total benefit is at most -<A(p) - L, q - p>, and surely does not if
   <A(q) - L, q - p> <= 0. The upper side is the lower one with p and q exchanged.

   The condition cannot be left out: no step size makes the sign rule or the proportional rule monotone. One token with
   two equal scores sees D rise by u, and by eps / 2. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum zmodp ring.
From alflb Require Import definitions topk c1_lagrangian_identity.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section MonotonicityCondition.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (L : 'I_E -> R).
Hypothesis KE : (K <= E)%N.
Implicit Types (p q : 'I_E -> R).
Local Notation D := (D K scores L).
Local Notation A := (load K scores).
Local Notation benefit := (benefit K scores).

Theorem sandwich_lower p q : \sum_k ((A p k)%:R - L k) * (q k - p k) <= D q - D p.
Proof. by rewrite lagrangian_identity ler_addr; apply: sumr_ge0 => i _; apply: benefit_ge0. Qed.

Theorem sandwich_upper p q : D q - D p <= \sum_k ((A q k)%:R - L k) * (q k - p k).
Proof.
rewrite -opprB ler_oppl; apply: le_trans (sandwich_lower q p).
by rewrite -sumrN le_eqVlt; apply/orP; left; apply/eqP/eq_bigr => k _; ring.
Qed.

Theorem no_rise_iff p q :
  (D q <= D p) = (\sum_i benefit p q i <= - \sum_k ((A p k)%:R - L k) * (q k - p k)).
Proof. by rewrite -[LHS]subr_le0 lagrangian_identity -ler_subr_addr sub0r. Qed.

(* With steps delta_k = eps_k (L_k - A_k), as balancing rules take them. *)
Corollary no_rise_iff_of_steps p q (eps : 'I_E -> R) :
  (forall k, q k - p k = eps k * (L k - (A p k)%:R)) ->
  (D q <= D p) = (\sum_i benefit p q i <= \sum_k eps k * ((A p k)%:R - L k) ^+ 2).
Proof. by move=> step; rewrite -[LHS]subr_le0 (lagrangian_identity_of_steps step) subr_le0. Qed.

Theorem surely_no_rise p q : \sum_k ((A q k)%:R - L k) * (q k - p k) <= 0 -> D q <= D p.
Proof. by move=> h; rewrite -subr_le0 (le_trans (sandwich_upper p q)). Qed.

End MonotonicityCondition.

(* ------------------------------------------------- D rises, at every step size *)
Section Refutation.
Variable F : realFieldType.
Implicit Types (q : 'I_2 -> F).
Definition equal_scores (i : 'I_1) (k : 'I_2) : F := 0.
Definition zero_bias (k : 'I_2) : F := 0.
Local Notation L := (even F 1 1).
Local Notation D := (D 1 equal_scores L).

Lemma load_zero k : load 1 equal_scores zero_bias k = (k == ord0) :> nat.
Proof.
have picked i : (k \in picks 1 equal_scores zero_bias i) = (k == ord0).
  rewrite inE ltnS leqn0 cards_eq0; apply/eqP/eqP=> [none|->]; last first.
    by apply/setP=> j; rewrite !inE /beats ltxx ltn0 andbF.
  apply/val_inj/eqP; rewrite -leqn0 leqNgt; apply/negP=> k0.
  by move/setP/(_ ord0): none; rewrite !inE /beats eqxx k0 orbT.
rewrite /load; under eq_finset do rewrite picked.
by case: (k == ord0); rewrite ?cardsT ?card_ord //; apply/eqP; rewrite cards_eq0; apply/eqP/setP=> i; rewrite !inE.
Qed.

Lemma sum_two (f : 'I_2 -> F) : \sum_k f k = f ord0 + f ord_max.
Proof. by rewrite big_ord_recl big_ord1; congr (_ + f _); apply/val_inj. Qed.

Let half : F := 2%:R^-1.
Lemma half_target (k : 'I_2) : L k = half.
Proof. by rewrite /even muln1 mul1r. Qed.

Lemma D_zero : D zero_bias = 0.
Proof.
rewrite /D big1 ?big1 ?subrr // => [k _|i _]; first by rewrite mulr0.
by rewrite /top_sum big1 // => k _; rewrite /biased addr0.
Qed.

(* The token could take the second expert. *)
Lemma D_ge q : q ord_max - half * (q ord0 + q ord_max) <= D q.
Proof.
rewrite /D big_ord1 sum_two !half_target -mulrDr ler_add2r.
have := @top_sum_max F 2 1 (biased equal_scores q ord0) [set ord_max] isT (cards1 _).
by rewrite big_set1 /biased add0r.
Qed.

Theorem sign_rule_raises_D u : 0 < u -> D zero_bias + u <= D (sign_step 1 equal_scores L u zero_bias).
Proof.
move=> u0; rewrite D_zero add0r; apply: le_trans (D_ge _).
have half_gt0 : 0 < half by rewrite invr_gt0 ltr0n.
have half_lt1 : half - 1 < 0 by rewrite subr_lt0 invf_lt1 ?ltr0n // ltr1n.
rewrite /sign_step !load_zero /= !half_target subr0 (gtr0_sg half_gt0) (ltr0_sg half_lt1).
by rewrite /zero_bias !add0r mulrN mulr1 addNr mulr0 subr0.
Qed.

Theorem proportional_rule_raises_D eps : 0 < eps ->
  D zero_bias + eps / 2%:R <= D (proportional_step 1 equal_scores L eps zero_bias).
Proof.
move=> eps0; rewrite D_zero add0r; apply: le_trans (D_ge _).
rewrite /proportional_step !load_zero /= !half_target /zero_bias le_eqVlt; apply/orP; left; apply/eqP.
by rewrite /half; field.
Qed.

End Refutation.
